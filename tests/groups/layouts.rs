//! Groups made from a layout: who is in them, what they are called, and that ranks which disagree make none.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tutti::{
    config::{GroupOptions, Timeout},
    error::{Error, Status},
    group::{
        Group, batch,
        layout::{Description, KINDS, Kind, Label, Layout, Sizes},
    },
};

use crate::{on_threads, sum, together, world};

type Made = Vec<(Kind, Arc<Group>)>;

fn create(world: &Arc<Group>, layout: &Arc<Layout>, kinds: &[Kind], options: GroupOptions) -> Result<Made, Error> {
    let made = Arc::new(Mutex::new(Vec::new()));
    let place = made.clone();
    world.create_layout(layout, kinds, options, Box::new(move |groups| *place.lock().unwrap() = groups))?;
    Ok(std::mem::take(&mut *made.lock().unwrap()))
}

/// Two hosts of four ranks, joined in pairs across hosts.
fn description() -> Description {
    let sizes = Sizes { tensor: 4, pipeline: 2, decode_context: 2, ..Sizes::default() };
    let labels = (0..8).map(|rank| Label { host: rank / 4, domain: rank / 2 % 2, lane: rank % 2 }).collect();
    Description { labels, ..Description::new(8, sizes) }
}

/// Each group consists of the ranks that the layout says, in its order, under its name.
fn check(world: &Group, layout: &Layout, made: &Made, prefix: &str) {
    for (kind, group) in made {
        let expected = layout.groups(*kind).of(world.rank()).unwrap();
        assert_eq!((group.rank(), group.size()), (expected.position, expected.ranks.len() as u32));
        assert_eq!(group.name(), format!("{prefix}{}:{}", kind.name(), expected.index));
        let members: i64 = expected.ranks.iter().map(|rank| 1 << rank).sum();
        assert_eq!(sum(group, 1 << world.rank()).unwrap(), members, "{} of rank {}", group.name(), world.rank());
    }
}

#[test]
fn every_rank_gets_its_group_of_each_kind() {
    let _process = together();
    let layout = Arc::new(description().plan().unwrap());
    on_threads(world(8), |_, world| {
        let made = create(&world, &layout, &KINDS, GroupOptions::default()).unwrap();
        assert!(made.iter().map(|(kind, _)| *kind).eq(KINDS));
        check(&world, &layout, &made, "");
        let name = Some("draft".to_owned());
        let wanted = [Kind::Expert, Kind::Pipeline];
        let made = create(&world, &layout, &wanted, GroupOptions { name, ..GroupOptions::default() }).unwrap();
        assert!(made.iter().map(|(kind, _)| *kind).eq([Kind::Pipeline, Kind::Expert]));
        check(&world, &layout, &made, "draft/");
        let (_, pipeline) = &made[0];
        assert!(Arc::ptr_eq(&Group::find(pipeline.name(), Some(pipeline.rank())).unwrap(), pipeline));
        assert_eq!(sum(&world, 1).unwrap(), 8);
    });
}

#[test]
fn one_thread_makes_the_groups_of_all_its_ranks_in_a_batch() {
    let _process = together();
    let layout = Arc::new(description().plan().unwrap());
    let ranks = world(8);
    let made: Vec<Arc<Mutex<Made>>> = ranks.iter().map(|_| Arc::default()).collect();
    batch::begin().unwrap();
    for (rank, place) in ranks.iter().zip(&made) {
        let place = place.clone();
        let deliver = Box::new(move |groups| *place.lock().unwrap() = groups);
        rank.create_layout(&layout, &KINDS, GroupOptions::default(), deliver).unwrap();
    }
    batch::end().unwrap();
    let made = made.into_iter().map(|made| std::mem::take(&mut *made.lock().unwrap()));
    on_threads(ranks.iter().zip(made).collect(), |_, (world, made)| {
        assert_eq!(made.len(), KINDS.len());
        check(world, &layout, &made, "");
    });
}

#[test]
fn ranks_whose_layouts_differ_are_named_and_make_no_group() {
    let _process = together();
    let layout = Arc::new(description().plan().unwrap());
    let sizes = Sizes { tensor: 2, pipeline: 4, ..Sizes::default() };
    let other = Arc::new(Description { sizes, ..description() }.plan().unwrap());
    on_threads(world(8), |rank, world| {
        let given = if rank == 5 { &other } else { &layout };
        let named = GroupOptions { name: Some("differ".into()), ..GroupOptions::default() };
        let error = create(&world, given, &KINDS, named).err().unwrap();
        let Error::Failed(failure) = &error else { panic!("{error}") };
        assert_eq!((failure.status, failure.rank), (Status::Mismatch, Some(5)), "{error}");
        assert!(failure.text.contains("the ranks describe different layouts"), "{error}");
        assert!(Group::find("differ/tp:0", None).err().unwrap().to_string().contains("no group named"));

        let kinds: &[Kind] = if rank == 2 { &[Kind::Tensor] } else { &KINDS };
        let error = create(&world, &layout, kinds, GroupOptions::default()).err().unwrap();
        assert_eq!(error.status(), Status::Mismatch);
        assert!(error.to_string().contains("groups of other kinds"), "{error}");
        // The parent has not failed, and the next attempt finds all ranks together.
        check(&world, &layout, &create(&world, &layout, &KINDS, GroupOptions::default()).unwrap(), "");
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_said() {
    let _process = together();
    let layout = Arc::new(description().plan().unwrap());
    on_threads(world(2), |_, world| {
        let error = create(&world, &layout, &KINDS, GroupOptions::default()).err().unwrap();
        assert_eq!(error.to_string(), "the layout is for 8 ranks, but the group has 2");
        let pair = Arc::new(Description::new(2, Sizes { tensor: 2, ..Sizes::default() }).plan().unwrap());
        let twice = create(&world, &pair, &[Kind::Tensor, Kind::Tensor], GroupOptions::default()).err().unwrap();
        assert_eq!(twice.status(), Status::InvalidArgument);
        let name = Some("x".repeat(240));
        let long = create(&world, &pair, &KINDS, GroupOptions { name, ..GroupOptions::default() }).err().unwrap();
        assert_eq!(long.status(), Status::InvalidArgument);
        assert_eq!(sum(&world, 1).unwrap(), 2);
    });
}

#[test]
fn a_failure_of_one_group_is_the_failure_of_the_layout_on_all_ranks() {
    let _process = together();
    // Rank 3 wants another deadline for its groups, which rank 2 finds when the two make their TP group; the others, who
    // are not in it, hear of it.
    let layout = Arc::new(Description::new(4, Sizes { tensor: 2, pipeline: 2, ..Sizes::default() }).plan().unwrap());
    let started = Instant::now();
    on_threads(world(4), |rank, world| {
        let timeout = Timeout::After(Duration::from_secs(if rank == 3 { 99 } else { 100 }));
        let error = create(&world, &layout, &KINDS, GroupOptions { timeout, ..GroupOptions::default() }).err().unwrap();
        assert_eq!(error.status(), Status::Mismatch, "rank {rank}: {error}");
        assert!(error.to_string().contains("timeout_ms"), "rank {rank}: {error}");
        assert_eq!(sum(&world, 1).unwrap(), 4);
    });
    assert!(started.elapsed() < Duration::from_secs(60), "somebody waited for a rank that had given up");
}

#[test]
fn a_rank_that_does_not_come_to_the_layout_is_named() {
    let _process = together();
    let layout = Arc::new(Description::new(3, Sizes { tensor: 3, ..Sizes::default() }).plan().unwrap());
    on_threads(world(3), |rank, world| {
        if rank == 1 {
            return;
        }
        // Long enough for the other two to find each other on a busy machine.
        let timeout = Timeout::After(Duration::from_secs(1));
        let error = create(&world, &layout, &KINDS, GroupOptions { timeout, ..GroupOptions::default() }).err().unwrap();
        // Late, or gone with its handle of the world; which of the two comes first is up to chance.
        assert!(matches!(error.status(), Status::Timeout | Status::PeerLost), "{error}");
        assert!(error.to_string().contains("rank 1 of the world"), "{error}");
    });
}
