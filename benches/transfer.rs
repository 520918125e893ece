//! How fast transfers between processes are: beside the same bytes as plain messages between the same processes, beside
//! one copy of them by the kernel, beside one message per tensor, and beside gather-then-broadcast, which is what engines
//! commonly do.
//!
//! `cargo bench --bench transfer`; with a file name behind `--`, every time is written there, one row a line. The first
//! half of the ranks holds everything, the second half gets it. Rows of a table take turns, so that a machine that gets
//! slower does so for all; each time is from a barrier to a barrier, in which the slowest rank counts. What arrived is
//! checked.

use std::{
    cell::RefCell,
    fs::OpenOptions,
    io::Write,
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

const ROUNDS: usize = 9;
const SMALL_TENSORS: usize = 10_000;
const SMALL_BYTES: usize = 16 << 10;
/// 64 MiB of float32.
const LARGE: [u64; 2] = [8192, 2048];
const LARGE_BYTES: usize = LARGE[0] as usize * LARGE[1] as usize * 4;
const LARGE_TENSORS: usize = 4;

fn main() {
    if std::env::var_os("TRANSFER_BENCH").is_some() {
        return play();
    }
    let file = std::env::args().skip(1).find(|argument| argument != "--bench");
    if let Some(file) = &file {
        std::fs::write(file, "").expect("the rows can be written");
    }
    for size in [2u32, 4] {
        let key = format!("transfer-bench-{}-{size}", std::process::id());
        let program = std::env::current_exe().unwrap();
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                Command::new(&program)
                    .env("TRANSFER_BENCH", file.as_deref().unwrap_or(""))
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

/// Something that all ranks do at once.
struct Row<'a> {
    what: &'static str,
    run: Box<dyn FnMut() + 'a>,
}

impl<'a> Row<'a> {
    fn new(what: &'static str, run: impl FnMut() + 'a) -> Row<'a> {
        Row { what, run: Box::new(run) }
    }
}

impl Bench {
    /// Measures and reports rows that all move so many bytes.
    fn measure(&self, title: &str, bytes: usize, mut rows: Vec<Row<'_>>) {
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); rows.len()];
        // The first round touches the memory.
        for round in 0..=ROUNDS {
            for (row, times) in rows.iter_mut().zip(&mut times) {
                self.group.sync(Timeout::Default).unwrap();
                let begin = Instant::now();
                (row.run)();
                self.group.sync(Timeout::Default).unwrap();
                if round > 0 {
                    times.push(begin.elapsed());
                }
            }
        }
        if self.rank != 0 {
            return;
        }
        println!(
            "{title}, {} processes: {} hold and {} get",
            self.group.size(),
            self.sources,
            self.group.size() - self.sources
        );
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        for (row, own) in rows.iter().zip(&times) {
            let middle = median(own.iter().map(ms));
            let share = median(times[0].iter().zip(own).map(|(first, own)| ms(first) / ms(own)));
            let rate = bytes as f64 / middle / 1e6;
            println!("  {:<50} {middle:>9.2} ms {rate:>7.2} GB/s {share:>7.2}", row.what);
        }
        let Some(file) = std::env::var("TRANSFER_BENCH").ok().filter(|file| !file.is_empty()) else { return };
        let mut file = OpenOptions::new().append(true).open(file).expect("the rows can be written");
        for (row, times) in rows.iter().zip(&times) {
            let times: Vec<String> = times.iter().map(|time| format!("{:.3}", ms(time))).collect();
            let (processes, what, times) = (self.group.size(), row.what, times.join(", "));
            writeln!(
                file,
                r#"{{"table": "{title}", "processes": {processes}, "row": "{what}", "bytes": {bytes}, "ms": [{times}]}}"#
            )
            .expect("the rows can be written");
        }
    }

    fn is_source(&self) -> bool {
        self.rank < self.sources
    }

    /// The rank at the other side that stands where this one does.
    fn partner(&self) -> u32 {
        if self.is_source() { self.rank + self.sources } else { self.rank - self.sources }
    }

    fn layout(&self, ranks: std::ops::Range<u32>, placement: Placement) -> Layout {
        let ranks: Vec<u32> = ranks.collect();
        let mesh = Mesh::new(&[ranks.len() as u64], &ranks).unwrap();
        Layout { dtype: DType::Float32, mesh, placements: vec![placement] }
    }

    fn side(&self) -> Side {
        if self.is_source() { Side::Source } else { Side::Target }
    }

    /// A plan carried out with memory of this rank.
    fn transfer(&self, items: &[Item]) -> Planned {
        let plan = Arc::new(Plan::new(items, &Options::new(self.group.size())).unwrap());
        let mut transfer = Transfer::new(plan.clone(), self.group.clone()).unwrap();
        let mut memory = Vec::new();
        for item in 0..items.len() {
            let Some(region) = plan.region(item, self.side(), self.rank) else { continue };
            let mut bytes = vec![0.0f32; region.elements() as usize];
            if self.is_source() {
                each_element(&plan, item, self.side(), self.rank, 1, |at, value| bytes[at] = value);
            }
            // SAFETY: the memory is as large as the region and outlives the transfer.
            unsafe { transfer.bind(item, self.side(), bytes.as_mut_ptr().cast(), None) }.unwrap();
            memory.push((item, bytes));
        }
        Planned { transfer, memory }
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

    /// What it takes to have the kernel copy the partner's memory to this rank's; `None` where it may not.
    fn kernel_copy(&self, memory: &mut [Vec<u8>]) -> Option<Remote> {
        if self.is_source() {
            let mut words = vec![u64::from(std::process::id())];
            words.extend(memory.iter().map(|memory| memory.as_ptr().addr() as u64));
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.group.send_bytes(&bytes, self.partner(), 1, Timeout::Default).unwrap();
        }
        let mut remote = Remote { process: 0, places: Vec::new() };
        let mut may = [1];
        if !self.is_source() {
            let mut bytes = vec![0; 8 * (1 + memory.len())];
            self.group.receive_bytes(&mut bytes, self.partner(), 1, Timeout::Default).unwrap();
            let mut words = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            remote.process = words.next().unwrap() as i32;
            remote.places = words.map(|word| word as usize).collect();
            may = [u8::from(remote.read(0, &mut memory[0][..1]))];
            self.group.send_bytes(&may, self.partner(), 1, Timeout::Default).unwrap();
        } else {
            self.group.receive_bytes(&mut may, self.partner(), 1, Timeout::Default).unwrap();
        }
        (may[0] == 1).then_some(remote)
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

/// A transfer and its memory, by item.
struct Planned {
    transfer: Transfer,
    memory: Vec<(usize, Vec<f32>)>,
}

impl Planned {
    fn carry_out(&mut self) {
        self.transfer.start().unwrap();
        self.transfer.wait(Timeout::Never).unwrap();
    }

    /// Whether a good part of everything has arrived.
    fn check(&self, bench: &Bench) {
        for (item, memory) in &self.memory {
            each_element(self.transfer.plan(), *item, bench.side(), bench.rank, 13, |at, value| {
                assert_eq!(memory[at], value, "element {at} of tensor {item} on rank {}", bench.rank);
            });
        }
    }
}

/// Calls `each` with the place in memory and the value of every element in every `by`-th row of a part.
fn each_element(plan: &Plan, item: usize, side: Side, rank: u32, by: usize, mut each: impl FnMut(usize, f32)) {
    let Some(region) = plan.region(item, side, rank) else { return };
    let (columns, width) = (*plan.shape(item).last().unwrap(), *region.extent.last().unwrap());
    let left = *region.start.last().unwrap();
    let (top, rows) = if region.extent.len() == 2 { (region.start[0], region.extent[0]) } else { (0, 1) };
    for row in (0..rows).step_by(by) {
        for column in 0..width {
            let index = (top + row) * columns + left + column;
            each((row * width + column) as usize, (index % (1 << 20)) as f32 + item as f32);
        }
    }
}

/// Memory of another process.
struct Remote {
    process: i32,
    places: Vec<usize>,
}

impl Remote {
    /// Copies from one of the places; whether that was all allowed and done.
    fn read(&self, place: usize, memory: &mut [u8]) -> bool {
        let local = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        let remote = libc::iovec { iov_base: self.places[place] as *mut libc::c_void, iov_len: memory.len() };
        // SAFETY: the kernel writes to `memory` alone.
        let read = unsafe { libc::process_vm_readv(self.process, &local, 1, &remote, 1, 0) };
        read == memory.len() as isize
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn play() {
    let group = Group::world(WorldOptions::default()).unwrap();
    let bench = Bench { rank: group.rank(), sources: group.size() / 2, group };
    large(&bench);
    small(&bench);
}

fn large(bench: &Bench) {
    let (size, sources) = (bench.group.size(), bench.sources);
    let shards = RefCell::new(vec![vec![1u8; LARGE_BYTES / sources as usize]; LARGE_TENSORS]);
    let by_plan = |dim: usize| {
        let items: Vec<Item> = (0..LARGE_TENSORS)
            .map(|at| Item {
                name: format!("large.{at}"),
                shape: LARGE.to_vec(),
                source: bench.layout(0..sources, Placement::shard(0)),
                target: bench.layout(sources..size, Placement::shard(dim)),
                wire: None,
            })
            .collect();
        RefCell::new(bench.transfer(&items))
    };
    let (rows, columns) = (by_plan(0), by_plan(1));
    let mut whole = vec![0; LARGE_BYTES];
    let mut table = vec![Row::new("one message per shard", || bench.messages(&mut shards.borrow_mut()))];
    if let Some(remote) = bench.kernel_copy(&mut shards.borrow_mut()) {
        let shards = &shards;
        table.push(Row::new("copied once, by the kernel (process_vm_readv)", move || {
            for (place, memory) in shards.borrow_mut().iter_mut().enumerate() {
                assert!(bench.is_source() || remote.read(place, memory));
            }
        }));
    }
    table.push(Row::new("by a plan, rows to rows", || rows.borrow_mut().carry_out()));
    table.push(Row::new("by a plan, rows to columns", || columns.borrow_mut().carry_out()));
    table.push(Row::new("gathered and broadcast, rows to columns", || {
        for shard in shards.borrow_mut().iter_mut() {
            bench.gather_then_broadcast(shard, &mut whole);
        }
    }));
    bench.measure("4 tensors of 64 MiB", LARGE_TENSORS * LARGE_BYTES, table);
    rows.borrow().check(bench);
    columns.borrow().check(bench);
}

/// Each tensor goes from one rank to one other.
fn small(bench: &Bench) {
    let sources = bench.sources;
    let own = SMALL_TENSORS / sources as usize;
    let memory = RefCell::new(vec![vec![1u8; SMALL_BYTES]; own]);
    let items: Vec<Item> = (0..SMALL_TENSORS)
        .map(|at| {
            let source = at as u32 % sources;
            Item {
                name: format!("small.{at}"),
                shape: vec![SMALL_BYTES as u64 / 4],
                source: bench.layout(source..source + 1, Placement::Replicate),
                target: bench.layout(source + sources..source + sources + 1, Placement::Replicate),
                wire: None,
            }
        })
        .collect();
    let planned = RefCell::new(bench.transfer(&items));
    let table = vec![
        Row::new("one message per tensor", || bench.messages(&mut memory.borrow_mut())),
        Row::new("by a plan", || planned.borrow_mut().carry_out()),
    ];
    bench.measure("10,000 tensors of 16 KiB", SMALL_TENSORS * SMALL_BYTES, table);
    planned.borrow().check(bench);
}
