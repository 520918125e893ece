//! The layout as one JSON object, for tools: written as it goes, so that memory is that of the text.

use std::fmt::Write as _;

use super::{Axis, KINDS, Layout};

pub(super) fn draw(layout: &Layout) -> String {
    let mut text = String::new();
    // A string takes all that is written. Names and numbers need no escapes.
    let _ = write!(text, "{{\"world\":{},\"digest\":\"{:016x}\",\"sizes\":{{", layout.world(), layout.digest());
    for (i, kind) in KINDS.into_iter().enumerate() {
        let _ = write!(text, "{}\"{}\":{}", comma(i), kind.name(), layout.sizes().group(kind));
    }
    text.push_str("},\"axes\":[");
    for (i, axis) in layout.axes().iter().enumerate() {
        let _ = write!(text, "{}\"{}\"", comma(i), name(*axis));
    }
    text.push_str("],\"groups\":{");
    for (i, kind) in KINDS.into_iter().enumerate() {
        let _ = write!(text, "{}\"{}\":[", comma(i), kind.name());
        for (index, ranks) in layout.groups(kind).iter().enumerate() {
            let _ = write!(text, "{}{{\"name\":\"{}:{index}\",\"ranks\":[", comma(index), kind.name());
            for (i, rank) in ranks.iter().enumerate() {
                let _ = write!(text, "{}{rank}", comma(i));
            }
            text.push(']');
            if let Some(reach) = layout.reach(ranks) {
                let _ = write!(text, ",\"hosts\":{},\"domains\":{}", reach.hosts, reach.domains);
            }
            text.push('}');
        }
        text.push(']');
    }
    text.push_str("}}\n");
    text
}

fn comma(index: usize) -> &'static str {
    if index == 0 { "" } else { "," }
}

/// Axes have the names of the groups along them.
fn name(axis: Axis) -> &'static str {
    KINDS.into_iter().find(|kind| kind.axis() == Some(axis)).map_or("", super::Kind::name)
}
