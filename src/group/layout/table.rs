//! The layout as text.

use std::fmt::Write as _;

use super::{KINDS, Layout, Product};

pub(super) fn draw(layout: &Layout) -> String {
    let mut text = String::new();
    let sizes = layout.sizes();
    line(
        &mut text,
        format_args!(
            "layout of {} ranks: {} | digest {:016x}",
            layout.world(),
            Product(sizes, layout.axes()),
            layout.digest()
        ),
    );
    for kind in KINDS {
        let groups = layout.groups(kind);
        let (count, size) = (groups.count(), groups.size());
        if size == 1 {
            line(&mut text, format_args!("\n{:<12}each rank alone", kind.name()));
            continue;
        }
        let reach = if layout.labels().is_empty() { "" } else { "  hosts  domains" };
        line(&mut text, format_args!("\n{:<12}{count} x {size} ranks{reach}", kind.name()));
        // As wide as the heading, so that the columns stand under it.
        let width = 12 + format!("{count} x {size} ranks").len();
        for (index, ranks) in groups.iter().enumerate() {
            let name = format!("  {}:{index}", kind.name());
            let reach = layout
                .reach(ranks)
                .map_or(String::new(), |reach| format!("  {:>5}  {:>7}", reach.hosts, reach.domains));
            line(&mut text, format_args!("{name:<width$}{reach}  {}", runs(ranks)));
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    // A string takes all that is written.
    let _ = writeln!(text, "{line}");
}

/// `0-3 8-11`: runs of three and more are drawn together.
fn runs(ranks: &[u32]) -> String {
    let mut text = String::new();
    for run in ranks.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let space = if text.is_empty() { "" } else { " " };
        let _ = match run {
            [first, _, .., last] => write!(text, "{space}{first}-{last}"),
            [first, last] => write!(text, "{space}{first} {last}"),
            [rank] => write!(text, "{space}{rank}"),
            [] => Ok(()),
        };
    }
    text
}
