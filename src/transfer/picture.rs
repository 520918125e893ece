//! Who sends how much to whom, as a picture: senders down, receivers across, the darker the more.
//!
//! A bar beside every sender and under every receiver says how much it sends and receives in all, with a line at the
//! bound. Ranks that would not fit are drawn together. Plain SVG 1.1 without scripts or fonts of its own.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::plan::Plan;
use super::report::{TRANSPORTS, bytes};

/// The most rows or columns; beyond that, neighbouring ranks share one.
const MOST_LINES: usize = 64;
/// Width and height of the matrix, in pixels, as far as cells of sensible size allow.
const MATRIX: f64 = 640.0;
const SMALLEST_CELL: f64 = 9.0;
const LARGEST_CELL: f64 = 52.0;
/// Cells at least this wide have their amount written in them.
const CELL_WITH_TEXT: f64 = 44.0;
const BAR: f64 = 120.0;
const LEFT: f64 = 92.0;
const TOP: f64 = 132.0;

/// The colour of the largest amount, per transport.
const COLOURS: [(u8, u8, u8); 4] = [(23, 86, 156), (186, 84, 16), (62, 118, 60), (112, 60, 140)];
const WORDS: [&str; 4] = ["one to one", "broadcast", "within the rank", "to be reduced"];

const INK: &str = "#1c2330";
const FAINT: &str = "#5b6472";
const BOUND: &str = "#c0273a";

/// Ranks that are drawn as one row or column.
struct Line {
    first: u32,
    last: u32,
    /// The largest of its ranks.
    amount: u64,
}

pub(super) fn draw(plan: &Plan) -> String {
    let moves = plan.moves();
    let mut sends: BTreeMap<u32, u64> = BTreeMap::new();
    let mut receives: BTreeMap<u32, u64> = BTreeMap::new();
    for (from, to) in moves.keys() {
        sends.insert(*from, 0);
        receives.insert(*to, 0);
    }
    for load in plan.loads() {
        sends.entry(load.rank).and_modify(|amount| *amount = load.sent + load.reduce_sent);
        receives.entry(load.rank).and_modify(|amount| *amount = load.received + load.reduce_received);
    }
    let (rows, columns) = (lines(&sends), lines(&receives));
    let mut cells: BTreeMap<(usize, usize), [u64; 4]> = BTreeMap::new();
    for ((from, to), amounts) in &moves {
        let at = (line_of(&rows, *from), line_of(&columns, *to));
        for (sum, amount) in cells.entry(at).or_default().iter_mut().zip(amounts) {
            *sum += amount;
        }
    }
    let most = cells.values().map(|amounts| amounts.iter().sum()).max().unwrap_or(0);

    let lines = rows.len().max(columns.len()).max(1) as f64;
    let cell = (MATRIX / lines).clamp(SMALLEST_CELL, LARGEST_CELL);
    let (width, height) = (cell * columns.len() as f64, cell * rows.len() as f64);
    let mut picture = Picture { text: String::new(), cell };
    picture.head(plan, LEFT + width.max(330.0) + BAR + 110.0, TOP + height + BAR + 76.0);
    if most == 0 {
        picture.text.push_str("</svg>\n");
        return picture.text;
    }
    picture.grid(&rows, &columns);
    for ((row, column), amounts) in &cells {
        picture.cell(&rows[*row], &columns[*column], (*row, *column), amounts, most);
    }
    let totals = plan.totals();
    picture.bars(&rows, false, width, totals.send_bound);
    picture.bars(&columns, true, height, totals.receive_bound);
    let used = TRANSPORTS.map(|transport| cells.values().any(|amounts| amounts[transport as usize] > 0));
    picture.legend(used, TOP + height + BAR + 52.0);
    picture.text.push_str("</svg>\n");
    picture.text
}

/// Ranks in order, as many together as needed.
fn lines(amounts: &BTreeMap<u32, u64>) -> Vec<Line> {
    let amounts: Vec<(u32, u64)> = amounts.iter().map(|(rank, amount)| (*rank, *amount)).collect();
    let together = amounts.len().div_ceil(MOST_LINES).max(1);
    let line = |ranks: &[(u32, u64)]| Line {
        first: ranks[0].0,
        last: ranks[ranks.len() - 1].0,
        amount: ranks.iter().map(|(_, amount)| *amount).max().unwrap_or(0),
    };
    amounts.chunks(together).map(line).collect()
}

fn line_of(lines: &[Line], rank: u32) -> usize {
    lines.partition_point(|line| line.last < rank)
}

impl Line {
    fn name(&self) -> String {
        if self.first == self.last { self.first.to_string() } else { format!("{}–{}", self.first, self.last) }
    }
}

struct Picture {
    text: String,
    cell: f64,
}

impl Picture {
    fn head(&mut self, plan: &Plan, width: f64, height: f64) {
        let totals = plan.totals();
        let _ = write!(
            self.text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" \
             fill=\"{INK}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        let plural = if totals.items == 1 { "" } else { "s" };
        let title = match totals.chunks {
            0 => format!("{} tensor{plural}: nothing to move", totals.items),
            _ => format!("{} tensor{plural}, {} over the wire", totals.items, bytes(totals.wire + totals.reduced)),
        };
        self.label(24.0, 32.0, "start", 19, INK, &title);
        let mut facts = vec![
            format!("{} bucket{}", totals.buckets, if totals.buckets == 1 { "" } else { "s" }),
            format!("busiest sender {}, at least {}", bytes(totals.largest_send), bytes(totals.send_bound)),
        ];
        if totals.local > 0 {
            facts.push(format!("{} stay on their rank", bytes(totals.local)));
        }
        self.label(24.0, 54.0, "start", 12, FAINT, &facts.join("   ·   "));
        let receiver =
            format!("busiest receiver {}, lacks {}", bytes(totals.largest_receive), bytes(totals.receive_bound));
        let staged = format!("at most {} staged per rank", bytes(totals.staging));
        self.label(24.0, 72.0, "start", 12, FAINT, &format!("{receiver}   ·   {staged}"));
    }

    fn label(&mut self, x: f64, y: f64, anchor: &str, size: u32, fill: &str, text: &str) {
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{fill}\">{text}</text>"
        );
    }

    fn grid(&mut self, rows: &[Line], columns: &[Line]) {
        let (cell, width, height) = (self.cell, self.cell * columns.len() as f64, self.cell * rows.len() as f64);
        let _ = writeln!(
            self.text,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"#f3f5f8\"/>"
        );
        self.label(LEFT, TOP - 30.0, "start", 12, INK, "to rank");
        self.label(LEFT - 8.0, TOP - 30.0, "end", 12, INK, "from rank");
        // As many labels as fit beside each other.
        let every = |length: f64| (length / cell).ceil().max(1.0) as usize;
        let widest = columns.iter().map(|line| line.name().chars().count()).max().unwrap_or(1) as f64;
        for (at, line) in rows.iter().enumerate().step_by(every(12.0)) {
            self.label(LEFT - 8.0, TOP + cell * (at as f64 + 0.5) + 4.0, "end", 11, FAINT, &line.name());
        }
        for (at, line) in columns.iter().enumerate().step_by(every(6.5 * widest + 8.0)) {
            self.label(LEFT + cell * (at as f64 + 0.5), TOP - 10.0, "middle", 11, FAINT, &line.name());
        }
    }

    fn cell(&mut self, row: &Line, column: &Line, at: (usize, usize), amounts: &[u64; 4], most: u64) {
        let total: u64 = amounts.iter().sum();
        let main = (0..4).max_by_key(|transport| (amounts[*transport], 4 - transport)).unwrap_or(0);
        // The square root keeps small amounts visible.
        let strength = 0.14 + 0.86 * (total as f64 / most as f64).sqrt();
        let (x, y) = (LEFT + self.cell * at.1 as f64, TOP + self.cell * at.0 as f64);
        let size = self.cell - 1.0;
        let details: Vec<String> = (0..4)
            .filter(|transport| amounts[*transport] > 0)
            .map(|transport| format!("{} {}", bytes(amounts[transport]), WORDS[transport]))
            .collect();
        let _ = writeln!(
            self.text,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{size:.1}\" height=\"{size:.1}\" fill=\"{}\">\
             <title>{} to {}: {}</title></rect>",
            x + 0.5,
            y + 0.5,
            shade(COLOURS[main], strength),
            row.name(),
            column.name(),
            details.join(", "),
        );
        if self.cell >= CELL_WITH_TEXT {
            let ink = if strength > 0.55 { "#ffffff" } else { INK };
            let (amount, unit) = bytes(total)
                .split_once(' ')
                .map_or((String::new(), String::new()), |(amount, unit)| (amount.to_string(), unit.to_string()));
            let middle = x + self.cell / 2.0;
            self.label(middle, y + self.cell / 2.0, "middle", 12, ink, &amount);
            self.label(middle, y + self.cell / 2.0 + 13.0, "middle", 10, ink, &unit);
        }
    }

    /// The bars beside the rows, or under the columns.
    fn bars(&mut self, lines: &[Line], under: bool, side: f64, bound: u64) {
        let most = lines.iter().map(|line| line.amount).max().unwrap_or(0).max(bound);
        if most == 0 {
            return;
        }
        let scale = BAR / most as f64;
        let thickness = (self.cell - 2.0).min(26.0);
        for (at, line) in lines.iter().enumerate() {
            let along = self.cell * (at as f64 + 0.5) - thickness / 2.0;
            let length = line.amount as f64 * scale;
            let (x, y, width, height) = if under {
                (LEFT + along, TOP + side + 10.0, thickness, length)
            } else {
                (LEFT + side + 10.0, TOP + along, length, thickness)
            };
            let verb = if under { "receives" } else { "sends" };
            let _ = writeln!(
                self.text,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"#8a94a6\">\
                 <title>{} {verb} {}</title></rect>",
                line.name(),
                bytes(line.amount),
            );
        }
        let (at, reach) = (bound as f64 * scale + side + 10.0, self.cell * lines.len() as f64);
        let (x1, y1, x2, y2) =
            if under { (LEFT, TOP + at, LEFT + reach, TOP + at) } else { (LEFT + at, TOP, LEFT + at, TOP + reach) };
        let _ = writeln!(
            self.text,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{BOUND}\" \
             stroke-width=\"1.5\" stroke-dasharray=\"5 3\"/>"
        );
        let text = format!("{} {}", if under { "lacks" } else { "bound" }, bytes(bound));
        if under {
            self.label(LEFT + reach + 8.0, TOP + at + 4.0, "start", 11, BOUND, &text);
            self.label(LEFT - 8.0, TOP + side + 22.0, "end", 12, INK, "receives");
        } else {
            self.label(LEFT + at, TOP - 10.0, "middle", 11, BOUND, &text);
            self.label(LEFT + side + 10.0, TOP - 30.0, "start", 12, INK, "sends");
        }
    }

    fn legend(&mut self, used: [bool; 4], y: f64) {
        let mut x = 24.0;
        for transport in (0..4).filter(|transport| used[*transport]) {
            for step in 0..3 {
                let colour = shade(COLOURS[transport], [0.25, 0.6, 1.0][step]);
                let _ = writeln!(
                    self.text,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
                    x + 12.0 * step as f64,
                    y - 10.0,
                );
            }
            self.label(x + 42.0, y, "start", 12, INK, WORDS[transport]);
            x += 60.0 + 6.4 * WORDS[transport].len() as f64;
        }
    }
}

/// A colour mixed with white.
fn shade((red, green, blue): (u8, u8, u8), strength: f64) -> String {
    let mix = |channel: u8| (255.0 - (255.0 - f64::from(channel)) * strength).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(red), mix(green), mix(blue))
}
