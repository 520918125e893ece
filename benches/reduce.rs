//! How fast this processor reduces two buffers into a third, for each element type and operation, beside memcpy.
//!
//! `cargo bench --bench reduce [-- WORD...]` prints only rows that contain every word. Figures are bytes read and
//! written, in 10^9 per second: the median of 15 samples of at least 2 ms each.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use tutti::{
    communicator::reduce::reduce,
    dtype::{OPS, REDUCIBLE},
};

/// Bytes of each buffer: within L1, within L2, beyond both.
const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
const SAMPLES: usize = 15;
const SAMPLE: Duration = Duration::from_millis(2);

fn main() {
    // Cargo passes `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let [a, b] = [1, 2].map(|seed| buffer(seed, SIZES[2]));
    let mut dst = buffer(3, SIZES[2]);

    println!("{:<20} {:>10} {:>10} {:>10}   GB/s read and written (share of memcpy)", "", "4 KiB", "64 KiB", "1 MiB");
    let copy = SIZES.map(|size| {
        // SAFETY: both buffers are at least as long as the greatest size, and apart.
        2.0 * rate(size, || unsafe {
            black_box(&a).as_ptr().copy_to_nonoverlapping(black_box(&mut dst).as_mut_ptr(), size)
        })
    });
    println!("{:<20} {:>10.1} {:>10.1} {:>10.1}", "memcpy", copy[0], copy[1], copy[2]);

    for (dtype, op) in REDUCIBLE.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op))) {
        let name = format!("{} {}", dtype.name(), op.name());
        if !words.iter().all(|word| name.split(' ').any(|part| part == word)) {
            continue;
        }
        print!("{name:<20}");
        for (size, copy) in SIZES.into_iter().zip(copy) {
            let sources = [a.as_ptr(), b.as_ptr()];
            let target = dst.as_mut_ptr();
            // SAFETY: as above.
            let rate =
                3.0 * rate(size, || unsafe { reduce(dtype, op, black_box(&sources), target, size / dtype.size()) });
            print!(" {rate:>6.1} {:>2.0}%", 100.0 * rate / copy);
        }
        println!();
    }
}

/// Bytes that are small finite numbers in every element type, so that nothing is slowed by subnormals or infinities.
fn buffer(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        0x38 + (state >> 60) as u8
    })
    .take(bytes)
    .collect()
}

/// Gigabytes of one buffer per second.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let mut time = |rounds: u32| {
        let start = Instant::now();
        (0..rounds).for_each(|_| work());
        start.elapsed()
    };
    let mut rounds = 1;
    while time(rounds) < SAMPLE {
        rounds *= 2;
    }
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| time(rounds).as_secs_f64() / f64::from(rounds)).collect();
    samples.sort_by(f64::total_cmp);
    bytes as f64 / samples[SAMPLES / 2] / 1e9
}
