//! Plans the move of a mixture-of-experts model of 10^12 parameters from 256 training ranks to 128 inference ranks, and
//! says how long it took, how much memory it needed, and how far from its bounds the plan is.
//!
//! Training: 4 pipeline stages of 64 ranks; within a stage experts are split over 16 x 4 (expert parallel, then their
//! hidden dimension), everything else over all 64 (fully sharded) after a 4-way tensor split. Inference: every layer on
//! 128 ranks, experts over 32 x 4 in fp8, the rest 4-way tensor parallel and replicated 32 times.
//!
//! `cargo bench --bench transfer_plan`; with a file name behind `--`, the picture is written there.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use tutti::dtype::DType;
use tutti::transfer::{Format, Item, Layout, Mesh, Options, Placement, Plan, Split};

const TRAINING: u32 = 256;
const INFERENCE: u32 = 128;
const STAGES: u32 = 4;
/// 128 layers of 8 tensors are 1,024 tensors; layers are spread evenly over the stages.
const LAYERS: u32 = 125;
const HIDDEN: u64 = 7168;
const EXPERTS: u64 = 384;
const EXPERT_HIDDEN: u64 = 960;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let items = model();
    let parameters: u64 = items.iter().map(|item| item.shape.iter().product::<u64>()).sum();
    let options = Options::new(TRAINING + INFERENCE);

    let begin = Instant::now();
    let plan = Plan::new(&items, &options).expect("the model can be planned");
    let elapsed = begin.elapsed();
    let peak = peak_memory();
    let hash: String = plan.hash().iter().map(|byte| format!("{byte:02x}")).collect();
    if arguments.first().is_some_and(|argument| argument == "--hash") {
        println!("{hash}");
        return;
    }

    println!("{} tensors, {parameters} parameters, {TRAINING} to {INFERENCE} ranks", items.len());
    println!("planned in {:.3} s, peak memory of the process {} MiB", elapsed.as_secs_f64(), peak >> 20);
    let table = plan.report(Format::Text);
    println!("{}", table.split("\n\n").take(2).collect::<Vec<_>>().join("\n\n"));
    let totals = plan.totals();
    println!("wire / bound           {:.6}", totals.wire as f64 / totals.wire_bound as f64);
    println!("largest sender / bound {:.6}", totals.largest_send as f64 / totals.send_bound as f64);
    println!("receive / bound        {:.6}", totals.largest_receive as f64 / totals.receive_bound as f64);
    // Another process has other hash seeds and another memory layout.
    let other = std::env::current_exe().ok().and_then(|me| Command::new(me).arg("--hash").output().ok());
    let same = other.is_some_and(|output| String::from_utf8_lossy(&output.stdout).trim() == hash);
    println!("another process plans the same: {same}");
    if let Some(file) = arguments.first() {
        std::fs::write(file, plan.report(Format::Svg)).expect("the picture can be written");
    }
    let within = elapsed.as_secs_f64() <= 2.0 && peak <= 1 << 30;
    let tight = totals.wire == totals.wire_bound && totals.largest_send as f64 <= 1.02 * totals.send_bound as f64;
    std::process::exit(if within && tight && same { 0 } else { 1 });
}

/// The most memory the process had so far, in bytes.
fn peak_memory() -> u64 {
    // SAFETY: rusage is plain numbers, for which all zero is a value, and getrusage writes only into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

fn model() -> Vec<Item> {
    let per_stage = TRAINING / STAGES;
    let inference: Vec<u32> = (TRAINING..TRAINING + INFERENCE).collect();
    let experts_there = Mesh::new(&[32, 4], &inference).expect("a mesh");
    let stages: Vec<(Arc<Mesh>, Arc<Mesh>)> = (0..STAGES)
        .map(|stage| {
            let ranks: Vec<u32> = (stage * per_stage..(stage + 1) * per_stage).collect();
            (Mesh::new(&[16, 4], &ranks).expect("a mesh"), Mesh::new(&[16, 4], &ranks).expect("a mesh"))
        })
        .collect();
    let shard = |dim, order| Placement::Shard { dim, split: Split::Ceil, order };
    let mut items = Vec::new();
    for layer in 0..LAYERS {
        let (experts_here, dense_here) = &stages[(layer * STAGES / LAYERS) as usize];
        let mut add =
            |name: &str, shape: &[u64], source: (&Arc<Mesh>, Vec<Placement>), target: (Vec<Placement>, DType)| {
                items.push(Item {
                    name: format!("layers.{layer}.{name}"),
                    shape: shape.to_vec(),
                    source: Layout { dtype: DType::Bfloat16, mesh: source.0.clone(), placements: source.1 },
                    target: Layout { dtype: target.1, mesh: experts_there.clone(), placements: target.0 },
                    wire: None,
                });
            };
        // Experts: [expert, out, in].
        for (name, out, dim) in [("gate", EXPERT_HIDDEN, 1), ("up", EXPERT_HIDDEN, 1), ("down", HIDDEN, 2)] {
            let shape = [EXPERTS, out, HIDDEN + EXPERT_HIDDEN - out];
            let split = vec![shard(0, 0), shard(dim, 0)];
            add(name, &shape, (experts_here, split.clone()), (split, DType::Float8E4M3));
        }
        // Dense: a tensor split of dimension 0 or 1, then fully sharded over the rest.
        for (name, shape, dim) in
            [("qkv", [3 * HIDDEN / 2, HIDDEN], 0), ("out", [HIDDEN, HIDDEN], 1), ("shared", [4096, HIDDEN], 0)]
        {
            let source = vec![shard(0, 1), shard(dim, 0)];
            add(name, &shape, (dense_here, source), (vec![Placement::Replicate, shard(dim, 0)], DType::Bfloat16));
        }
        // Replicated on both sides, whole or nearly.
        for (name, shape) in [("norm", vec![HIDDEN]), ("router", vec![EXPERTS, HIDDEN])] {
            let replicate = vec![Placement::Replicate, Placement::Replicate];
            add(name, &shape, (dense_here, replicate.clone()), (replicate, DType::Bfloat16));
        }
    }
    items
}
