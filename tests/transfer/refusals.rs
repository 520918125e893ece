//! Descriptions that do not add up are refused before anything moves, with a sentence that says what is wrong.

use std::sync::Arc;

use tutti::dtype::{DType, Op};
use tutti::error::{Error, Status};
use tutti::transfer::plan::MAX_WORLD;
use tutti::transfer::{Format, Item, Layout, Mesh, Options, Placement, Plan, Split};

fn mesh(dims: &[u64]) -> Arc<Mesh> {
    let size: u64 = dims.iter().product();
    Mesh::new(dims, &(0..size as u32).collect::<Vec<_>>()).unwrap()
}

fn good() -> Item {
    let layout = |placement| Layout { dtype: DType::Float32, mesh: mesh(&[4]), placements: vec![placement] };
    Item {
        name: "w".into(),
        shape: vec![8, 8],
        source: layout(Placement::shard(0)),
        target: layout(Placement::shard(1)),
        wire: None,
    }
}

fn refused(error: Error, status: Status, says: &str) {
    assert_eq!(error.status(), status, "{error}");
    assert!(error.is_harmless());
    assert!(error.to_string().contains(says), "\"{error}\" does not say \"{says}\"");
}

fn refuses(change: impl Fn(&mut Item), status: Status, says: &str) {
    let mut item = good();
    change(&mut item);
    let error = Plan::new(&[good(), item], &Options::new(4)).unwrap_err();
    assert!(error.to_string().contains("tensor 1 \"w\""), "\"{error}\" does not say which tensor");
    refused(error, status, says);
}

#[test]
fn meshes_that_do_not_add_up_are_refused() {
    let refuse = |dims: &[u64], ranks: &[u32], says| {
        refused(Mesh::new(dims, ranks).unwrap_err(), Status::InvalidArgument, says);
    };
    refuse(&[2, 2], &[0, 1, 2, 1], "rank 1 twice");
    refuse(&[2, 2], &[0, 1, 2], "does not hold the 3 ranks");
    refuse(&[0, 4], &[], "has no ranks");
    refuse(&[1 << 32, 1 << 32], &[0], "does not hold");
    refuse(&[u64::MAX, 2], &[0], "does not hold");
    refuse(&[1; 17], &[0], "17 dimensions");
    assert!(Mesh::new(&[], &[7]).is_ok(), "no dimensions are one rank");
}

#[test]
fn tensors_that_do_not_add_up_are_refused() {
    use Status::{InvalidArgument, Unsupported};
    refuses(|item| item.shape = vec![1 << 32, 1 << 32], InvalidArgument, "63 bits");
    refuses(|item| item.shape = vec![u64::MAX, 8], InvalidArgument, "63 bits");
    refuses(|item| item.shape = vec![0, u64::MAX, u64::MAX], InvalidArgument, "63 bits");
    refuses(|item| item.shape = vec![1; 17], InvalidArgument, "17 dimensions");
    refuses(|item| item.shape = vec![8], InvalidArgument, "along dimension 1");
    refuses(|item| item.source.placements.clear(), InvalidArgument, "0 placements for a mesh of 1");
    refuses(|item| item.target.placements.push(Placement::Replicate), InvalidArgument, "2 placements");
    refuses(|item| item.source.mesh = Mesh::new(&[4], &[0, 1, 2, 4]).unwrap(), InvalidArgument, "rank 4 is not in");
    refuses(|item| item.target.placements = vec![Placement::Partial(Op::Sum)], Unsupported, "target cannot be Partial");
    refuses(
        |item| {
            item.source.placements = vec![Placement::Partial(Op::Sum)];
            item.source.dtype = DType::Bool;
            item.target.dtype = DType::Bool;
        },
        Unsupported,
        "cannot be added up",
    );
    refuses(
        |item| {
            item.source.mesh = mesh(&[2, 2]);
            item.source.placements = vec![Placement::Partial(Op::Max), Placement::Partial(Op::Sum)];
        },
        Unsupported,
        "which comes first",
    );
    refuses(|item| item.target.dtype = DType::Int32, Unsupported, "only float types convert");
    refuses(|item| item.wire = Some(DType::Bytes), Unsupported, "only float types convert");
    let explicit = |sizes: &[u64]| Placement::Shard { dim: 0, split: Split::Explicit(sizes.to_vec()), order: 0 };
    refuses(|item| item.source.placements = vec![explicit(&[2, 2, 2])], InvalidArgument, "4 are needed");
    refuses(|item| item.source.placements = vec![explicit(&[2, 2, 2, 3])], InvalidArgument, "do not add up to the 8");
    refuses(
        |item| item.source.placements = vec![explicit(&[u64::MAX, 2, 2, 5])],
        InvalidArgument,
        "do not add up to the 8",
    );
}

#[test]
fn plans_beyond_all_bounds_are_refused() {
    let plan = |items: &[Item], options: Options| Plan::new(items, &options).unwrap_err();
    refused(plan(&[good()], Options::new(0)), Status::InvalidArgument, "a world of 0");
    refused(plan(&[good()], Options::new(MAX_WORLD + 1)), Status::InvalidArgument, "a world of");
    let tiny = |bucket_bytes, staging_bytes| Options { bucket_bytes, staging_bytes, ..Options::new(4) };
    refused(plan(&[good()], tiny(15, 0)), Status::InvalidArgument, "at least 16");
    refused(plan(&[good()], tiny(1 << 20, 31)), Status::InvalidArgument, "at least 16");

    let mut huge = good();
    huge.shape = vec![1 << 40, 1 << 12];
    refused(plan(&[huge.clone()], tiny(1 << 10, 0)), Status::Unsupported, "more than 8388608 chunks");
    let many = vec![huge; 64];
    refused(plan(&many, Options::new(4)), Status::InvalidArgument, "63 bits");

    // Every rank has a cell with every other, for many tensors: refused by count, not by running out of memory.
    let wide = |rank: u32| {
        let ranks: Vec<u32> = (rank..rank + 2048).collect();
        Mesh::new(&[2048], &ranks).unwrap()
    };
    let mut grid = good();
    grid.shape = vec![2048, 2048];
    grid.source.mesh = wide(0);
    grid.target.mesh = wide(2048);
    refused(plan(&[grid.clone(), grid.clone(), grid], Options::new(4096)), Status::Unsupported, "more than");
}

#[test]
fn options_beyond_use_are_harmless() {
    let wide = Options { in_flight: u32::MAX, bucket_bytes: u64::MAX, split_bytes: u64::MAX, ..Options::new(4) };
    let plan = Plan::new(&[good()], &wide).unwrap();
    assert!(plan.in_flight() as usize <= plan.bucket_count());
}

#[test]
fn an_empty_plan_is_a_plan() {
    let nothing = Plan::new(&[], &Options::new(4)).unwrap();
    assert_eq!((nothing.bucket_count(), nothing.ranks().len()), (0, 0));
    assert_eq!(nothing.operations(0), [0u32; 0]);
    assert!(nothing.chunk(0).is_none() && nothing.bucket(0).is_none() && nothing.load(0).is_none());
    let mut empty = good();
    empty.shape = vec![8, 0];
    let empty = Plan::new(&[empty], &Options::new(4)).unwrap();
    assert_eq!((empty.bucket_count(), empty.ranks().len()), (0, 4));
    for plan in [nothing, empty] {
        for format in [Format::Text, Format::Json, Format::Svg] {
            assert!(!plan.report(format).is_empty());
        }
    }
}
