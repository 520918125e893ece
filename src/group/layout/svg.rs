//! The layout as a picture: a panel for each kind, with a cell for each rank where it stands, coloured by group.

use std::fmt::Write as _;

use super::{Groups, KINDS, Kind, Layout, Reach};

/// The side of a cell, in pixels, and what is between cells, between domains, and around hosts and panels.
const CELL: u32 = 34;
const GAP: u32 = 3;
const DOMAIN: u32 = 8;
const MARGIN: u32 = 18;
/// The height of a line of text.
const LINE: u32 = 18;
/// Cells in a row of a host.
const ROW: usize = 16;
/// Ranks drawn together where no labels tell which are on one host.
const UNLABELLED: usize = 8;
/// Above this many ranks, cells are too many to be read, and get no text.
const READABLE: u32 = 4096;

pub(super) fn draw(layout: &Layout) -> String {
    let floor = Floor::new(layout);
    // What divides nothing, or everything from everything, shows nothing; unless that is all there is.
    let shows = |kind: &Kind| layout.groups(*kind).size() > 1;
    let mut kinds: Vec<Kind> = KINDS.into_iter().filter(shows).collect();
    if kinds.is_empty() {
        kinds.push(Kind::Tensor);
    }
    let widest = kinds.iter().map(|kind| width(&heading(layout, layout.groups(*kind)))).max().unwrap_or(0);
    // Panels beside each other until the picture is about half again as wide as high.
    let panel = (floor.width.max(widest) + 2 * MARGIN, floor.height + 2 * LINE + MARGIN);
    let columns = (1..kinds.len())
        .find(|columns| *columns as u32 * panel.0 >= kinds.len().div_ceil(*columns) as u32 * panel.1 * 3 / 2)
        .unwrap_or(kinds.len());
    let title = format!("layout of {} ranks: {}", layout.world(), super::Product(layout.sizes(), layout.axes()));
    let width = (columns as u32 * panel.0).max(width(&title) * 5 / 4 + 2 * MARGIN);
    let height = 2 * LINE + MARGIN + kinds.len().div_ceil(columns) as u32 * panel.1;

    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <title>{title}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n",
        MARGIN + LINE / 2,
    );
    for (i, kind) in kinds.into_iter().enumerate() {
        let (column, row) = (i % columns, i / columns);
        let x = MARGIN + column as u32 * panel.0;
        let y = 2 * LINE + MARGIN + row as u32 * panel.1;
        floor.draw(&mut svg, layout, layout.groups(kind), x, y);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where the ranks stand: hosts beside and below each other, each with its cells.
struct Floor {
    hosts: Vec<Host>,
    /// The upper left corner of each rank's cell.
    cells: Vec<(u32, u32)>,
    width: u32,
    height: u32,
}

struct Host {
    name: Option<String>,
    at: (u32, u32),
    size: (u32, u32),
}

impl Floor {
    fn new(layout: &Layout) -> Self {
        let labels = layout.labels();
        let mut ranks: Vec<u32> = (0..layout.world()).collect();
        let blocks: Vec<&[u32]> = if labels.is_empty() {
            ranks.chunks(UNLABELLED).collect()
        } else {
            let label = |rank: &u32| labels[*rank as usize];
            ranks.sort_by_key(|rank| (label(rank).host, label(rank).domain, label(rank).lane));
            ranks.chunk_by(|a, b| label(a).host == label(b).host).collect()
        };
        let is_new_domain = |a: u32, b: u32| {
            labels.get(a as usize).map(|label| label.domain) != labels.get(b as usize).map(|label| label.domain)
        };

        // Cells of a host, and the size of the largest.
        let mut cells = vec![(0, 0); ranks.len()];
        let (mut width, mut height) = (0, 0);
        for block in &blocks {
            let mut x = 0;
            for (i, rank) in block.iter().enumerate() {
                if i % ROW == 0 {
                    x = 0;
                } else if is_new_domain(block[i - 1], *rank) {
                    x += DOMAIN;
                }
                cells[*rank as usize] = (x, (i / ROW) as u32 * (CELL + GAP));
                x += CELL + GAP;
                width = width.max(x);
            }
            height = height.max((block.len().div_ceil(ROW)) as u32 * (CELL + GAP));
        }
        let heading = if labels.is_empty() { 0 } else { LINE };
        let (step_x, step_y) = (width + MARGIN, height + heading + MARGIN / 2);

        // As many hosts beside each other as make about a square.
        let columns = (1..blocks.len())
            .find(|columns| *columns as u32 * step_x >= blocks.len().div_ceil(*columns) as u32 * step_y)
            .unwrap_or(1)
            .max(1);
        let mut hosts = Vec::with_capacity(blocks.len());
        for (i, block) in blocks.iter().enumerate() {
            let at = ((i % columns) as u32 * step_x, (i / columns) as u32 * step_y);
            for rank in *block {
                let cell = &mut cells[*rank as usize];
                *cell = (cell.0 + at.0, cell.1 + at.1 + heading);
            }
            let name =
                block.first().and_then(|rank| labels.get(*rank as usize)).map(|label| format!("host {}", label.host));
            hosts.push(Host { name, at, size: (width, height + heading) });
        }
        Self { width: columns as u32 * step_x, height: blocks.len().div_ceil(columns) as u32 * step_y, hosts, cells }
    }

    fn draw(&self, svg: &mut String, layout: &Layout, groups: &Groups, x: u32, y: u32) {
        let _ = writeln!(
            svg,
            "<g transform=\"translate({x} {y})\">\n<text y=\"{}\" font-weight=\"bold\">{}</text>\n\
             <g transform=\"translate(0 {})\">",
            LINE - 4,
            heading(layout, groups),
            LINE + GAP,
        );
        for host in &self.hosts {
            let Some(name) = &host.name else { continue };
            let ((x, y), (width, height)) = (host.at, host.size);
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"#f2f2f2\"/>\
                 <text x=\"{}\" y=\"{}\" font-size=\"11\">{name}</text>",
                x + GAP,
                y + LINE - 5,
            );
        }
        for (index, ranks) in groups.iter().enumerate() {
            let _ = write!(svg, "<path fill=\"{}\" d=\"", colour(index));
            for rank in ranks {
                let (x, y) = self.cells[*rank as usize];
                let _ = write!(svg, "M{x} {y}h{CELL}v{CELL}h-{CELL}z");
            }
            let _ = writeln!(svg, "\"/>");
        }
        if layout.world() <= READABLE {
            let _ = writeln!(svg, "<g text-anchor=\"middle\">");
            for (index, ranks) in groups.iter().enumerate() {
                for rank in ranks {
                    let (x, y) = self.cells[*rank as usize];
                    let x = x + CELL / 2;
                    let _ = writeln!(
                        svg,
                        "<text x=\"{x}\" y=\"{}\">{rank}</text><text x=\"{x}\" y=\"{}\" font-size=\"9\">:{index}</text>",
                        y + CELL / 2 - 1,
                        y + CELL - 6,
                    );
                }
            }
            let _ = writeln!(svg, "</g>");
        }
        svg.push_str("</g>\n</g>\n");
    }
}

/// What a panel shows.
fn heading(layout: &Layout, groups: &Groups) -> String {
    let reaches = groups.iter().filter_map(|ranks| layout.reach(ranks));
    let farthest = reaches.reduce(|a, b| Reach { hosts: a.hosts.max(b.hosts), domains: a.domains.max(b.domains) });
    let reach = farthest.map_or(String::new(), |reach| {
        format!(", at most {}, {}", plural(reach.hosts, "host"), plural(reach.domains, "domain"))
    });
    format!("{}: {} of {}{reach}", groups.kind().name(), plural(groups.count(), "group"), plural(groups.size(), "rank"))
}

/// About the width of bold text, in pixels.
fn width(text: &str) -> u32 {
    text.len() as u32 * 8
}

fn plural(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Colours that dark text can be read on; neighbours in number are far apart on the wheel (the golden angle).
fn colour(index: usize) -> String {
    let hue = (index as f64 * 137.508) % 360.0;
    let lightness = [76, 66, 84][index / 8 % 3];
    format!("hsl({hue:.0} 62% {lightness}%)")
}
