//! How fast transfers between processes are: beside the same bytes as plain messages between the same processes, beside
//! one message per tensor, and beside gather-then-broadcast, which is what engines commonly do.
//!
//! `cargo bench --bench transfer`. The first half of the ranks holds everything, the second half gets it. Every figure is
//! the median of several runs, each from a barrier to a barrier, in which the slowest rank counts.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use tutti::{
    communicator::{Call, Descriptor},
    config::{Timeout, WorldOptions},
    dtype::{Collective, DType, Op},
    group::Group,
    transfer::{Item, Layout, Mesh, Options, Placement, Plan, Side, Transfer},
};

const REPEATS: usize = 7;
const SMALL_TENSORS: usize = 10_000;
const SMALL_BYTES: usize = 16 << 10;
/// 64 MiB of float32.
const LARGE: [u64; 2] = [8192, 2048];
const LARGE_TENSORS: usize = 4;

fn main() {
    if std::env::var_os("TRANSFER_BENCH").is_some() {
        return play();
    }
    for size in [2u32, 4] {
        let key = format!("transfer-bench-{}-{size}", std::process::id());
        let program = std::env::current_exe().unwrap();
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                Command::new(&program)
                    .env("TRANSFER_BENCH", "1")
                    .env("RANK", rank.to_string())
                    .env("WORLD_SIZE", size.to_string())
                    .env("TUTTI_WORLD_KEY", &key)
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut rank in ranks {
            assert!(rank.wait().unwrap().success());
        }
    }
}

/// One rank.
struct Bench {
    group: Arc<Group>,
    rank: u32,
    sources: u32,
}

impl Bench {
    /// The median time of `body`, between barriers.
    fn measure(&self, mut body: impl FnMut()) -> Duration {
        body();
        let mut times: Vec<Duration> = (0..REPEATS)
            .map(|_| {
                self.group.sync(Timeout::Default).unwrap();
                let begin = Instant::now();
                body();
                self.group.sync(Timeout::Default).unwrap();
                begin.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    }

    fn report(&self, what: &str, bytes: usize, time: Duration, beside: Option<Duration>) {
        if self.rank == 0 {
            let rate = bytes as f64 / time.as_secs_f64() / 1e9;
            let share = beside.map_or(String::new(), |other| {
                format!("   {:.2} of the first row's speed", other.as_secs_f64() / time.as_secs_f64())
            });
            println!("  {what:<58} {:>9.2} ms {rate:>7.2} GB/s{share}", time.as_secs_f64() * 1e3);
        }
    }

    fn is_source(&self) -> bool {
        self.rank < self.sources
    }

    /// The rank at the other side that stands where this one does.
    fn partner(&self) -> u32 {
        if self.is_source() { self.rank + self.sources } else { self.rank - self.sources }
    }

    /// A plan carried out with this rank's memory.
    fn transfer(&self, items: &[Item], memory: &mut [Vec<u8>]) -> Transfer {
        let plan = Arc::new(Plan::new(items, &Options::new(self.group.size())).unwrap());
        let side = if self.is_source() { Side::Source } else { Side::Target };
        let mut transfer = Transfer::new(plan.clone(), self.group.clone()).unwrap();
        for (item, memory) in memory.iter_mut().enumerate() {
            let Some(region) = plan.region(item, side, self.rank) else { continue };
            memory.resize(region.elements() as usize * 4, self.rank as u8);
            // SAFETY: the memory is as large as the region and outlives the transfer.
            unsafe { transfer.bind(item, side, memory.as_mut_ptr(), None) }.unwrap();
        }
        transfer
    }

    fn carry_out(transfer: &mut Transfer) {
        transfer.start().unwrap();
        transfer.wait(Timeout::Never).unwrap();
    }

    /// Messages to (or from) the rank at the other side, one for each piece of memory.
    fn messages(&self, memory: &mut [Vec<u8>]) {
        for memory in memory {
            if self.is_source() {
                self.group.send_bytes(memory, self.partner(), 0, Timeout::Default).unwrap();
            } else {
                self.group.receive_bytes(memory, self.partner(), 0, Timeout::Default).unwrap();
            }
        }
    }

    /// The tensor is put together on rank 0 and broadcast to all, and who wants a part cuts it out.
    fn gather_then_broadcast(&self, shard: &mut [u8], whole: &mut [u8]) {
        if self.rank == 0 {
            whole[..shard.len()].copy_from_slice(shard);
            for source in 1..self.sources {
                let part = &mut whole[source as usize * shard.len()..][..shard.len()];
                self.group.receive_bytes(part, source, 0, Timeout::Default).unwrap();
            }
        } else if self.is_source() {
            self.group.send_bytes(shard, 0, 0, Timeout::Default).unwrap();
        }
        let descriptor = Descriptor {
            collective: Collective::Broadcast,
            dtype: DType::Bytes,
            op: Op::Sum,
            root: 0,
            flags: 0,
            count: whole.len() as u64,
        };
        let place = whole.as_mut_ptr();
        self.group.run(Call::new(descriptor, place, place), Timeout::Default).unwrap();
        if !self.is_source() {
            let (parts, mine) = (self.group.size() - self.sources, (self.rank - self.sources) as usize);
            let row = LARGE[1] as usize * 4;
            let width = row / parts as usize;
            for (from, to) in whole.chunks(row).zip(shard.chunks_mut(width)) {
                to.copy_from_slice(&from[mine * width..][..width]);
            }
        }
    }
}

fn play() {
    let group = Group::world(WorldOptions::default()).unwrap();
    let bench = Bench { rank: group.rank(), sources: group.size() / 2, group };
    let size = bench.group.size();
    if bench.rank == 0 {
        println!("{size} processes, {} hold and {} get; {REPEATS} runs each", bench.sources, size - bench.sources);
    }
    let mesh = |ranks: std::ops::Range<u32>| {
        let ranks: Vec<u32> = ranks.collect();
        Mesh::new(&[ranks.len() as u64], &ranks).unwrap()
    };
    let (from, to) = (mesh(0..bench.sources), mesh(bench.sources..size));
    let layout = |mesh: &Arc<Mesh>, placement: Placement| Layout {
        dtype: DType::Float32,
        mesh: mesh.clone(),
        placements: vec![placement],
    };

    // Large tensors.
    let bytes = LARGE.iter().product::<u64>() as usize * 4;
    let all = bytes * LARGE_TENSORS;
    let mut shards: Vec<Vec<u8>> = vec![vec![1; bytes / bench.sources as usize]; LARGE_TENSORS];
    let plain = bench.measure(|| bench.messages(&mut shards));
    bench.report("4 x 64 MiB as one message per shard", all, plain, None);
    for (what, dim) in [("by a plan, rows to rows", 0), ("by a plan, rows to columns", 1)] {
        let items: Vec<Item> = (0..LARGE_TENSORS)
            .map(|at| Item {
                name: format!("large.{at}"),
                shape: LARGE.to_vec(),
                source: layout(&from, Placement::shard(0)),
                target: layout(&to, Placement::shard(dim)),
                wire: None,
            })
            .collect();
        let mut transfer = bench.transfer(&items, &mut shards);
        let time = bench.measure(|| Bench::carry_out(&mut transfer));
        bench.report(what, all, time, Some(plain));
    }
    let mut whole = vec![0; bytes];
    let time = bench.measure(|| {
        for shard in &mut shards {
            bench.gather_then_broadcast(shard, &mut whole);
        }
    });
    bench.report("gathered on rank 0 and broadcast, rows to columns", all, time, Some(plain));

    // Small ones: each goes from one rank to one other.
    let mine = |at: usize| at as u32 % bench.sources == bench.rank % bench.sources;
    let mut small: Vec<Vec<u8>> =
        (0..SMALL_TENSORS).map(|at| if mine(at) { vec![1; SMALL_BYTES] } else { Vec::new() }).collect();
    let mut own: Vec<Vec<u8>> = small.iter().filter(|tensor| !tensor.is_empty()).cloned().collect();
    let each = bench.measure(|| bench.messages(&mut own));
    bench.report("10,000 x 16 KiB as one message per tensor", SMALL_TENSORS * SMALL_BYTES, each, None);
    let items: Vec<Item> = (0..SMALL_TENSORS)
        .map(|at| {
            let source = at as u32 % bench.sources;
            Item {
                name: format!("small.{at}"),
                shape: vec![SMALL_BYTES as u64 / 4],
                source: layout(&mesh(source..source + 1), Placement::Replicate),
                target: layout(&mesh(source + bench.sources..source + bench.sources + 1), Placement::Replicate),
                wire: None,
            }
        })
        .collect();
    let mut transfer = bench.transfer(&items, &mut small);
    let time = bench.measure(|| Bench::carry_out(&mut transfer));
    bench.report("10,000 x 16 KiB by a plan", SMALL_TENSORS * SMALL_BYTES, time, Some(each));
}
