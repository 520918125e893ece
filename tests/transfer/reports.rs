//! What a plan says of itself.

use std::collections::BTreeMap;

use tutti::transfer::{Format, Plan};

use crate::random::{self, ANYTHING, seeds};

/// Numbers of a JSON object list `[{"a":1,"b":"x"},...]` after `key`, as (field, text) per object.
fn objects(json: &str, key: &str) -> Vec<BTreeMap<String, String>> {
    let begin = json.find(&format!("\"{key}\":[")).unwrap() + key.len() + 4;
    let list = &json[begin..begin + json[begin..].find(']').unwrap()];
    list.split("},{")
        .filter(|object| !object.is_empty())
        .map(|object| {
            let fields = object.trim_matches(['{', '}']).split(',');
            let field = |field: &str| {
                let (name, value) = field.split_once(':').unwrap();
                (name.trim_matches('"').to_string(), value.trim_matches('"').to_string())
            };
            fields.map(field).collect()
        })
        .collect()
}

#[test]
fn the_json_report_adds_up() {
    seeds(700_000, 100, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let plan = Plan::new(&items, &options).unwrap();
        let json = plan.report(Format::Json);
        let (mut sent, mut received) = (BTreeMap::<u32, u64>::new(), BTreeMap::<u32, u64>::new());
        for object in objects(&json, "moves") {
            let number = |field: &str| object[field].parse::<u64>().unwrap();
            let (from, to) = (number("from") as u32, number("to") as u32);
            match object["transport"].as_str() {
                "local" => assert_eq!(from, to),
                "p2p" => *sent.entry(from).or_default() += number("bytes"),
                _ => {}
            }
            if ["p2p", "broadcast"].contains(&object["transport"].as_str()) {
                *received.entry(to).or_default() += number("bytes");
            }
        }
        let ranks = objects(&json, "ranks");
        assert_eq!(ranks.len(), plan.ranks().len());
        for object in ranks {
            let rank = object["rank"].parse::<u32>().unwrap();
            let load = plan.load(rank).unwrap();
            assert_eq!(object["received"], load.received.to_string());
            assert_eq!(received.get(&rank).copied().unwrap_or(0), load.received);
            assert!(sent.get(&rank).copied().unwrap_or(0) <= load.sent, "a broadcast is on top");
        }
        assert!(json.starts_with('{') && json.ends_with("}\n"));
        assert_eq!(json.matches('{').count(), json.matches('}').count());
    });
}

#[test]
fn the_table_has_a_row_per_rank_and_every_rank_can_be_viewed() {
    seeds(710_000, 100, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let plan = Plan::new(&items, &options).unwrap();
        let table = plan.report(Format::Text);
        let rows = table.lines().filter(|line| line.trim_start().starts_with(|digit: char| digit.is_ascii_digit()));
        assert!(rows.count() >= plan.ranks().len());
        for rank in plan.ranks() {
            assert_eq!(plan.report_rank(*rank).lines().count(), 1 + plan.operations(*rank).len());
        }
        assert!(plan.report_rank(1_000_000).contains("takes no part"));
    });
}

#[test]
fn the_picture_is_well_formed_and_bounded() {
    seeds(720_000, 100, |random| {
        let (items, options) = random::transfer(random, ANYTHING);
        let picture = Plan::new(&items, &options).unwrap().report(Format::Svg);
        let mut open = Vec::new();
        for tag in picture.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty() && picture.starts_with("<svg "));
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        assert!(picture.matches("<rect").count() <= 64 * 64 + 64 + 64 + 20);
    });
}
