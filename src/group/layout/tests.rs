//! The planner against the vendor's tables, against the usual transposes, and against the definition on any layout.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;

/// Two hosts of eight ranks, of which lanes 0-3 and 4-7 are joined across hosts: the vendor's supernodes.
fn supernodes() -> Vec<Label> {
    (0..16).map(|rank| Label { host: rank / 8, domain: rank / 4 % 2, lane: rank % 4 }).collect()
}

fn vendor() -> Description {
    Description { labels: supernodes(), ..Description::new(16, Sizes { tensor: 8, pipeline: 2, ..Sizes::default() }) }
}

fn lists(layout: &Layout, kind: Kind) -> Vec<Vec<u32>> {
    layout.groups(kind).iter().map(<[u32]>::to_vec).collect()
}

#[test]
fn the_vendors_tables_come_out() {
    let by_labels = vendor().plan().unwrap();
    let order = vec![0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];
    let by_order = Description { order, labels: Vec::new(), ..vendor() }.plan().unwrap();
    for layout in [by_labels, by_order] {
        let halves: [&[u32]; 2] = [&[0, 1, 2, 3, 8, 9, 10, 11], &[4, 5, 6, 7, 12, 13, 14, 15]];
        assert_eq!(lists(&layout, Kind::Tensor), halves);
        assert_eq!(
            lists(&layout, Kind::Pipeline),
            [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12], [9, 13], [10, 14], [11, 15]]
        );
        assert_eq!(lists(&layout, Kind::Data), (0..16).map(|rank| [rank]).collect::<Vec<_>>());
        assert_eq!(lists(&layout, Kind::Expert), halves);
    }
}

#[test]
fn the_vendors_breaks_do_not_come_out() {
    // DCP ignored the order of ranks, so that DCP 8 was no part of any TP group.
    for decode_context in [2, 4, 8] {
        let mut description = vendor();
        description.sizes.decode_context = decode_context;
        let layout = description.plan().unwrap();
        for group in layout.groups(Kind::DecodeContext).iter() {
            let tensor = layout.groups(Kind::Tensor).of(group[0]).unwrap().ranks;
            assert!(
                group.iter().all(|rank| tensor.contains(rank)),
                "DCP {decode_context}: {group:?} is not in {tensor:?}"
            );
        }
    }
    // No other sizes were served.
    for (tensor, pipeline, data) in [(4, 4, 1), (4, 2, 2), (2, 8, 1), (16, 1, 1), (1, 1, 16)] {
        let sizes = Sizes { tensor, pipeline, data, ..Sizes::default() };
        Description { sizes, ..vendor() }.plan().unwrap();
    }
}

#[test]
fn groups_report_the_hosts_and_domains_they_cross() {
    let layout = vendor().plan().unwrap();
    let reach = |kind| layout.reach(layout.groups(kind).of(0).unwrap().ranks).unwrap();
    assert_eq!(reach(Kind::Tensor), Reach { hosts: 2, domains: 1 });
    assert_eq!(reach(Kind::Pipeline), Reach { hosts: 1, domains: 2 });
    assert_eq!(reach(Kind::Data), Reach { hosts: 1, domains: 1 });
    let unlabelled = Description { labels: Vec::new(), ..vendor() }.plan().unwrap();
    assert_eq!(unlabelled.reach(&[0, 1]), None);
}

#[test]
fn an_explicit_order_goes_before_labels_which_then_only_report() {
    let layout = Description { order: (0..16).collect(), ..vendor() }.plan().unwrap();
    assert_eq!(lists(&layout, Kind::Tensor)[0], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(layout.reach(layout.groups(Kind::Tensor).of(0).unwrap().ranks), Some(Reach { hosts: 1, domains: 2 }));
}

/// What the engines do: an array of ranks by ExternalDP, DP, PP, PCP, TP, of which two axes change places, cut in rows.
fn transposed(sizes: &Sizes, swap: (usize, usize), row: u32) -> HashSet<Vec<u32>> {
    let shape = AXES.map(|axis| sizes.axis(axis));
    let mut swapped = shape;
    swapped.swap(swap.0, swap.1);
    let mut flat = Vec::new();
    for at in 0..shape.iter().product() {
        let mut rest = at;
        let mut index = [0; 5];
        for i in (0..5).rev() {
            index[i] = rest % swapped[i];
            rest /= swapped[i];
        }
        index.swap(swap.0, swap.1);
        flat.push(index.iter().zip(shape).fold(0, |n, (i, size)| n * size + i));
    }
    flat.chunks_exact(row as usize).map(<[u32]>::to_vec).collect()
}

#[test]
fn the_usual_transposes_make_the_same_groups() {
    for [external_data, data, pipeline, prefill_context, tensor] in
        [[1, 1, 1, 1, 8], [1, 2, 2, 1, 4], [2, 2, 3, 2, 4], [2, 3, 1, 4, 2], [1, 4, 2, 2, 1], [3, 1, 2, 5, 2]]
    {
        let sizes = Sizes { external_data, data, pipeline, prefill_context, tensor, ..Sizes::default() };
        let world = external_data * data * pipeline * prefill_context * tensor;
        let layout = Description::new(world, sizes).plan().unwrap();
        let sizes = layout.sizes();
        let found = |kind| layout.groups(kind).iter().map(<[u32]>::to_vec).collect::<HashSet<_>>();
        assert_eq!(found(Kind::Tensor), transposed(sizes, (4, 4), tensor));
        assert_eq!(found(Kind::PrefillContext), transposed(sizes, (3, 4), prefill_context));
        assert_eq!(found(Kind::Pipeline), transposed(sizes, (2, 4), pipeline));
        assert_eq!(found(Kind::Data), transposed(sizes, (1, 4), data));
        assert_eq!(found(Kind::ExternalData), transposed(sizes, (0, 4), external_data));
        assert_eq!(found(Kind::Expert), transposed(sizes, (1, 2), data * prefill_context * tensor));
        for decode_context in [1, prefill_context, prefill_context * tensor] {
            let sizes = Sizes { decode_context, ..*sizes };
            let layout = Description::new(world, sizes).plan().unwrap();
            let found: HashSet<_> = layout.groups(Kind::DecodeContext).iter().map(<[u32]>::to_vec).collect();
            assert_eq!(found, transposed(&sizes, (3, 4), decode_context));
        }
    }
}

fn refusal(description: &Description) -> String {
    let error = description.plan().expect_err("there is no such layout");
    assert_eq!(error.status(), Status::InvalidArgument);
    error.to_string()
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let sizes = |change: fn(&mut Sizes)| {
        let mut description = vendor();
        change(&mut description.sizes);
        refusal(&description)
    };
    let other = |change: fn(&mut Description)| {
        let mut description = vendor();
        change(&mut description);
        refusal(&description)
    };
    assert_eq!(
        sizes(|sizes| sizes.tensor = 4),
        "external DP 1 x DP 1 x PP 2 x PCP 1 x TP 4 is 8 ranks, but the world has 16; the product of these sizes must be \
         the world's size"
    );
    assert!(sizes(|sizes| sizes.tensor = u32::MAX).contains("is more than 4294967295 ranks, but the world has 16"));
    assert!(sizes(|sizes| sizes.decode_context = 3).starts_with("DCP 3 does not divide PCP 1 x TP 8"));
    assert!(sizes(|sizes| sizes.decode_context = 16).starts_with("DCP 16 does not divide PCP 1 x TP 8"));
    assert!(sizes(|sizes| sizes.expert = 16).starts_with("EP 16 does not divide TP 8 x PCP 1 x DP 1"));
    assert!(other(|description| description.world = 0).contains("not for 0"));
    assert!(other(|description| description.world = u32::MAX).contains("not for 4294967295"));
    assert!(other(|description| description.axes = [Axis::Tensor; 5]).contains("lacks external DP"));
    assert!(other(|description| description.order = vec![0; 15]).starts_with("the rank order has 15 entries"));
    assert!(other(|description| description.labels.truncate(3)).starts_with("the list of labels has 3 entries"));
    assert!(other(|description| description.order = vec![0; 16]).contains("names rank 0 twice, at places 0 and 1"));
    assert!(other(|description| description.order = (1..17).collect()).contains("names rank 16 at place 15"));
    assert_eq!(
        other(|description| description.labels[9] = description.labels[2]),
        "ranks 2 and 9 both claim host 0, domain 0, lane 2; labels must tell all ranks apart"
    );
    assert_eq!(
        other(|description| description.labels[15].domain = 7),
        "domains differ in size: domain 0 has 8 ranks, domain 1 has 7 ranks (rank 4 among them); give domains of one \
         size, or an explicit rank order"
    );
}

#[test]
fn a_part_of_a_span_must_be_made_of_whole_rows() {
    let plan = |decode_context| {
        let sizes = Sizes { prefill_context: 4, tensor: 3, decode_context, ..Sizes::default() };
        Description::new(12, sizes).plan()
    };
    for fits in [1, 2, 4, 12] {
        plan(fits).unwrap();
    }
    // 6 divides 12, but one rank of PCP and a half makes no groups that are alike.
    for ragged in [3, 5, 6, 8, 24] {
        plan(ragged).unwrap_err();
    }
}

#[test]
fn ranks_that_describe_different_layouts_are_named() {
    agree(&[]).unwrap();
    agree(&[7; 5]).unwrap();
    let Error::Failed(failure) = agree(&[7, 7, 8, 7, 9]).unwrap_err() else { panic!("a failure") };
    assert_eq!((failure.status, failure.rank), (Status::Mismatch, Some(2)));
    assert!(failure.text.contains("on ranks 0, 1, 3, others on ranks 2, 4;"), "{}", failure.text);
    let Error::Failed(failure) = agree(&[7, 8]).unwrap_err() else { panic!("a failure") };
    assert!(failure.text.contains("on rank 0, others on rank 1;"), "{}", failure.text);
    let many: Vec<u64> = (0..65536).map(|rank| (rank % 3 == 0).into()).collect();
    assert!(agree(&many).unwrap_err().to_string().len() < 400);
}

#[test]
fn the_digest_is_the_same_today_and_tomorrow() {
    assert_eq!(
        vendor().plan().unwrap().digest(),
        0xbf58_0663_fa6b_eb12,
        "the digest is part of what ranks of different builds compare"
    );
}

#[test]
fn the_digest_tells_descriptions_apart_by_what_they_mean() {
    let base = vendor();
    let digest = |change: fn(&mut Description)| {
        let mut description = base.clone();
        change(&mut description);
        description.plan().unwrap().digest()
    };
    let same = base.plan().unwrap().digest();
    // Defaults that are written out.
    assert_eq!(digest(|description| (description.sizes.data, description.sizes.expert) = (1, 8)), same);
    let mut all = vec![
        same,
        digest(|description| (description.sizes.tensor, description.sizes.pipeline) = (2, 8)),
        digest(|description| description.sizes.decode_context = 2),
        digest(|description| description.sizes.expert = 4),
        digest(|description| description.axes.swap(2, 4)),
        digest(|description| description.order = (0..16).collect()),
        digest(|description| description.labels.clear()),
        digest(|description| description.labels.iter_mut().for_each(|label| label.host += 1)),
        digest(|description| description.labels.swap(0, 1)),
    ];
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "no two are equal");
}

#[test]
fn sixty_five_thousand_ranks_are_planned_within_a_second() {
    let sizes =
        Sizes { tensor: 8, pipeline: 16, data: 64, external_data: 4, prefill_context: 2, decode_context: 4, expert: 0 };
    let mut description = Description::new(65536, sizes);
    description.labels =
        (0..65536).map(|rank| Label { host: rank / 8, domain: rank / 4 % 2, lane: rank % 4 }).collect();
    let start = Instant::now();
    let layout = description.plan().unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(layout.groups(Kind::Expert).count(), 64);
}

#[test]
fn the_table_has_a_line_for_every_group() {
    let mut description = vendor();
    description.sizes.decode_context = 2;
    let layout = description.plan().unwrap();
    let table = layout.table();
    let expected = format!(
        "layout of 16 ranks: external DP 1 x DP 1 x PP 2 x PCP 1 x TP 8 | digest {:016x}

tp          2 x 8 ranks  hosts  domains
  tp:0                       2        1  0-3 8-11
  tp:1                       2        1  4-7 12-15

pp          8 x 2 ranks  hosts  domains
  pp:0                       1        2  0 4
",
        layout.digest()
    );
    assert!(table.starts_with(&expected), "{table}");
    assert!(table.contains("\ndp          each rank alone\n"), "{table}");
    let groups = table.lines().filter(|line| line.starts_with("  ")).count();
    assert_eq!(groups, 2 + 8 + 8 + 2, "{table}");
}

#[test]
fn the_picture_has_a_cell_for_every_rank_of_every_kind_that_divides() {
    let layout = vendor().plan().unwrap();
    let svg = layout.svg();
    let cells = svg.matches("h34v34h-34z").count();
    assert_eq!(cells, 3 * 16, "TP, PP and EP");
    for rank in 0..16 {
        assert_eq!(svg.matches(&format!(">{rank}</text>")).count(), 3, "rank {rank}");
    }
    for tag in ["g", "text", "title", "svg"] {
        let opened = svg.matches(&format!("<{tag}>")).count() + svg.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

/// Sizes of a small world, and some order of axes and ranks.
fn description() -> impl Strategy<Value = Description> {
    let axes = Just(AXES).prop_shuffle();
    (1..=3_u32, 1..=3_u32, 1..=3_u32, 1..=4_u32, 1..=4_u32, axes, 0..3_u8).prop_flat_map(
        |(external_data, data, pipeline, prefill_context, tensor, axes, order)| {
            let world = external_data * data * pipeline * prefill_context * tensor;
            let parts = |inner: u32, outer: u32| {
                let all = (1..=inner).filter(move |part| inner.is_multiple_of(*part));
                all.chain((2..=outer).filter(|part| outer.is_multiple_of(*part)).map(|part| part * inner))
                    .collect::<Vec<_>>()
            };
            let decode_context = prop::sample::select(parts(prefill_context, tensor));
            let mut expert = parts(tensor, prefill_context);
            expert.extend((1..=data).filter(|part| data % part == 0).map(|part| part * tensor * prefill_context));
            expert.push(0);
            let expert = prop::sample::select(expert);
            let ranks: Vec<u32> = (0..world).collect();
            let domains = (1..=4).filter(|domains| world % domains == 0).max().unwrap_or(1);
            (decode_context, expert, Just(ranks).prop_shuffle()).prop_map(move |(decode_context, expert, shuffled)| {
                let sizes = Sizes { tensor, pipeline, data, external_data, prefill_context, decode_context, expert };
                let mut description = Description { axes, ..Description::new(world, sizes) };
                match order {
                    0 => {}
                    1 => description.order = shuffled,
                    // Any rank may have any place.
                    _ => {
                        description.labels = shuffled
                            .iter()
                            .map(|place| Label {
                                domain: place % domains,
                                host: place / domains % 2,
                                lane: place / domains / 2,
                            })
                            .collect();
                    }
                }
                description
            })
        },
    )
}

/// The coordinates of every rank, by walking the axes as the description says.
fn walk(description: &Description) -> HashMap<u32, [u32; 5]> {
    let mut ranks: Vec<u32> = (0..description.world).collect();
    if !description.order.is_empty() {
        ranks = description.order.clone();
    } else if !description.labels.is_empty() {
        ranks.sort_by_key(|rank| {
            let Label { host, domain, lane } = description.labels[*rank as usize];
            [domain, host, lane]
        });
    }
    let sizes = description.sizes;
    let mut places = vec![[0; 5]];
    for axis in description.axes {
        places = places
            .into_iter()
            .flat_map(|place| {
                (0..sizes.axis(axis)).map(move |at| {
                    let mut place = place;
                    place[axis as usize] = at;
                    place
                })
            })
            .collect();
    }
    ranks.into_iter().zip(places).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn every_rank_is_in_exactly_one_group_of_each_kind(description in description()) {
        let layout = description.plan().unwrap();
        for kind in KINDS {
            let groups = layout.groups(kind);
            prop_assert_eq!(groups.size(), layout.sizes().group(kind));
            prop_assert_eq!(groups.size() * groups.count(), description.world);
            let mut ranks = groups.ranks().to_vec();
            ranks.sort_unstable();
            prop_assert_eq!(ranks, (0..description.world).collect::<Vec<_>>());
            prop_assert!(groups.iter().is_sorted_by_key(|group| group[0]));
            for (index, group) in groups.iter().enumerate() {
                for (position, rank) in group.iter().enumerate() {
                    let (index, position) = (index as u32, position as u32);
                    prop_assert_eq!(groups.of(*rank), Some(Membership { index, position, ranks: group }));
                }
            }
            prop_assert_eq!(groups.of(description.world), None);
        }
    }

    #[test]
    fn ranks_of_a_group_differ_in_its_axes_only_and_count_along_them(description in description()) {
        let layout = description.plan().unwrap();
        let at = walk(&description);
        for kind in KINDS {
            for group in layout.groups(kind).iter() {
                for axis in AXES.into_iter().filter(|axis| !kind.span().contains(axis)) {
                    prop_assert!(group.iter().all(|rank| at[rank][axis as usize] == at[&group[0]][axis as usize]));
                }
                let counts: Vec<u32> = group
                    .iter()
                    .map(|rank| kind.span().iter().fold(0, |n, axis| n * layout.sizes().axis(*axis) + at[rank][*axis as usize]))
                    .collect();
                prop_assert!(counts.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{:?}", counts);
                prop_assert_eq!(counts[0] % layout.groups(kind).size(), 0);
            }
        }
    }

    #[test]
    fn an_order_of_ranks_renames_them_and_changes_nothing_else(description in description()) {
        let plain = Description { order: Vec::new(), labels: Vec::new(), ..description.clone() };
        let (layout, plain) = (description.plan().unwrap(), plain.plan().unwrap());
        let order = order::resolve(&description).unwrap();
        for kind in KINDS {
            let mut renamed: Vec<Vec<u32>> =
                plain.groups(kind).iter().map(|group| group.iter().map(|rank| order[*rank as usize]).collect()).collect();
            renamed.sort();
            prop_assert_eq!(lists(&layout, kind), renamed);
        }
    }

    #[test]
    fn decode_context_stays_within_tensor_and_prefill_context(description in description()) {
        let layout = description.plan().unwrap();
        let at = walk(&description);
        for group in layout.groups(Kind::DecodeContext).iter() {
            for axis in [Axis::ExternalData, Axis::Data, Axis::Pipeline] {
                prop_assert!(group.iter().all(|rank| at[rank][axis as usize] == at[&group[0]][axis as usize]));
            }
        }
        let sizes = layout.sizes();
        if sizes.decode_context == sizes.prefill_context {
            prop_assert_eq!(lists(&layout, Kind::DecodeContext), lists(&layout, Kind::PrefillContext));
        }
        if sizes.prefill_context == 1 && sizes.decode_context == sizes.tensor {
            prop_assert_eq!(lists(&layout, Kind::DecodeContext), lists(&layout, Kind::Tensor));
        }
    }

    #[test]
    fn table_and_picture_can_be_drawn_of_any_layout(description in description()) {
        let layout = description.plan().unwrap();
        prop_assert!(layout.table().lines().count() >= KINDS.len());
        prop_assert!(layout.svg().ends_with("</svg>\n"));
    }
}
