//! A plan for people and programs: a table, JSON, or a picture, from one call.
//!
//! Texts are made of what [`super::inspect`] counted; nothing is computed here but sums for display.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::inspect::Load;
use super::picture;
use super::plan::{Plan, Transport};

/// How [`Plan::report`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table for a terminal.
    Text,
    /// One JSON object: options, totals, what each rank does, and who sends how much to whom. Bytes are exact.
    Json,
    /// A picture (SVG) of who sends how much to whom.
    Svg,
}

/// All transports, in the order of their numbers.
pub(super) const TRANSPORTS: [Transport; 4] = [Transport::P2p, Transport::Broadcast, Transport::Local, Transport::None];

/// Bytes per (sender, receiver), by transport.
pub(super) type Moves = BTreeMap<(u32, u32), [u64; 4]>;

impl Plan {
    /// The plan in a few words, or a few thousand.
    pub fn report(&self, format: Format) -> String {
        match format {
            Format::Text => self.table(),
            Format::Json => self.json(),
            Format::Svg => picture::draw(self),
        }
    }

    /// One rank's operations as text, in their order; any rank's, from anywhere.
    pub fn report_rank(&self, rank: u32) -> String {
        let Some(load) = self.load(rank) else { return format!("rank {rank} takes no part in this transfer\n") };
        let mut text = format!("rank {rank}: {} operations, {} in flight\n", load.operations, self.in_flight());
        for (at, operation) in self.operations(rank).iter().enumerate() {
            let Some(bucket) = self.bucket(*operation as usize) else { continue };
            let what = match (bucket.transport, bucket.source == rank) {
                (Transport::P2p, true) => format!("send to {}", list(bucket.targets)),
                (Transport::P2p, false) => format!("receive from {}", bucket.source),
                (Transport::Broadcast, true) => format!("broadcast to {}", list(bucket.targets)),
                (Transport::Broadcast, false) => format!("receive the broadcast of {}", bucket.source),
                (Transport::Local, _) => "copy".to_string(),
                (Transport::None, _) => {
                    let round = bucket.round;
                    let block = round.and_then(|round| round.block(rank)).map_or(0, |(begin, end)| end - begin);
                    let members = list(round.map_or(&[], |round| round.members));
                    format!("reduce among {members}, keep {}", bytes(block))
                }
            };
            let (first, end) = bucket.chunks;
            let chunks = if end - first == 1 { "1 chunk".into() } else { format!("{} chunks", end - first) };
            let _ = writeln!(text, "{at:>6}  bucket {operation:<6} {:>10} in {chunks:<11} {what}", bytes(bucket.bytes));
        }
        text
    }

    /// Bytes that go from each rank to each other, and to itself.
    pub(super) fn moves(&self) -> Moves {
        let mut moves = Moves::new();
        self.each_move(|from, to, bytes, transport| {
            moves.entry((from, to)).or_default()[transport as usize] += bytes;
        });
        moves
    }

    fn hash_text(&self) -> String {
        self.hash().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn table(&self) -> String {
        let totals = &self.totals;
        let mut text = String::new();
        let kinds: Vec<String> = TRANSPORTS
            .iter()
            .filter(|transport| totals.by_transport[**transport as usize] > 0)
            .map(|transport| format!("{} {}", totals.by_transport[*transport as usize], transport.name()))
            .collect();
        let _ = writeln!(
            text,
            "transfer of {} tensors among {} ranks | plan {}\n\
             {} chunks in {} buckets of at most {}: {}; {} groups\n\
             {} in flight, {} of {} staged at most\n",
            totals.items,
            self.ranks.len(),
            self.hash_text(),
            totals.chunks,
            totals.buckets,
            bytes(self.options.bucket_bytes),
            if kinds.is_empty() { "nothing moves".into() } else { kinds.join(", ") },
            totals.groups,
            totals.in_flight,
            bytes(totals.staging),
            bytes(totals.staging_cap),
        );
        let mut row = |what: &str, amount: u64, bound: Option<u64>| {
            let bound = bound.map_or(String::new(), bytes);
            let _ = writeln!(text, "{what:<18}{:>12}{bound:>12}", bytes(amount));
        };
        row("over the wire", totals.wire, Some(totals.wire_bound));
        row("leaving sources", totals.injected, Some(totals.injection_bound));
        row("to be reduced", totals.reduced, Some(totals.reduce_bound));
        row("largest sender", totals.largest_send, Some(totals.send_bound));
        row("largest receiver", totals.largest_receive, Some(totals.receive_bound));
        row("one link's time", totals.duration, Some(totals.duration_bound));
        row("within ranks", totals.local, None);
        let at = text.find("over the wire").unwrap_or(0);
        text.insert_str(at, &format!("{:<18}{:>12}{:>12}\n", "", "bytes", "at least"));
        let reduces = totals.reduced > 0;
        let _ = write!(text, "\n{:>6}{:>12}{:>12}{:>12}{:>12}", "rank", "operations", "sent", "received", "at least");
        let _ = write!(text, "{:>12}", "local");
        if reduces {
            let _ = write!(text, "{:>15}{:>15}", "reduce sent", "reduce recv");
        }
        let _ = writeln!(text, "{:>12}", "staged");
        for load in &self.loads {
            let amounts = [load.sent, load.received, load.receive_bound, load.local];
            let _ = write!(text, "{:>6}{:>12}", load.rank, load.operations);
            for amount in amounts {
                let _ = write!(text, "{:>12}", bytes(amount));
            }
            if reduces {
                let _ = write!(text, "{:>15}{:>15}", bytes(load.reduce_sent), bytes(load.reduce_received));
            }
            let _ = writeln!(text, "{:>12}", bytes(load.staging));
        }
        text
    }

    fn json(&self) -> String {
        let (options, totals) = (&self.options, &self.totals);
        let mut text = format!("{{\"hash\":\"{}\",\"options\":", self.hash_text());
        object(
            &mut text,
            &[
                ("world", options.world.into()),
                ("bucket_bytes", options.bucket_bytes),
                ("staging_bytes", options.staging_bytes),
                ("in_flight", options.in_flight.into()),
                ("split_bytes", options.split_bytes),
            ],
        );
        text.push_str(",\"totals\":");
        object(
            &mut text,
            &[
                ("items", totals.items),
                ("chunks", totals.chunks),
                ("buckets", totals.buckets),
                ("p2p_buckets", totals.by_transport[0]),
                ("broadcast_buckets", totals.by_transport[1]),
                ("local_buckets", totals.by_transport[2]),
                ("reduce_buckets", totals.by_transport[3]),
                ("groups", totals.groups),
                ("wire", totals.wire),
                ("wire_bound", totals.wire_bound),
                ("injected", totals.injected),
                ("injection_bound", totals.injection_bound),
                ("reduced", totals.reduced),
                ("reduce_bound", totals.reduce_bound),
                ("local", totals.local),
                ("largest_send", totals.largest_send),
                ("send_bound", totals.send_bound),
                ("largest_receive", totals.largest_receive),
                ("receive_bound", totals.receive_bound),
                ("duration", totals.duration),
                ("duration_bound", totals.duration_bound),
                ("staging", totals.staging),
                ("staging_cap", totals.staging_cap),
                ("in_flight", totals.in_flight.into()),
            ],
        );
        text.push_str(",\"ranks\":[");
        for (at, load) in self.loads.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            let Load { rank, operations, sent, received, receive_bound, local, .. } = *load;
            object(
                &mut text,
                &[
                    ("rank", rank.into()),
                    ("operations", operations),
                    ("sent", sent),
                    ("received", received),
                    ("receive_bound", receive_bound),
                    ("local", local),
                    ("reduce_sent", load.reduce_sent),
                    ("reduce_received", load.reduce_received),
                    ("staging", load.staging),
                ],
            );
        }
        text.push_str("],\"moves\":[");
        let mut first = true;
        for ((from, to), amounts) in self.moves() {
            for transport in TRANSPORTS.iter().filter(|transport| amounts[**transport as usize] > 0) {
                let comma = if std::mem::take(&mut first) { "" } else { "," };
                let (name, bytes) = (transport.name(), amounts[*transport as usize]);
                let _ =
                    write!(text, "{comma}{{\"from\":{from},\"to\":{to},\"transport\":\"{name}\",\"bytes\":{bytes}}}");
            }
        }
        text.push_str("]}\n");
        text
    }
}

fn object(text: &mut String, fields: &[(&str, u64)]) {
    for (at, (name, value)) in fields.iter().enumerate() {
        let _ = write!(text, "{}\"{name}\":{value}", if at == 0 { '{' } else { ',' });
    }
    text.push('}');
}

fn list(ranks: &[u32]) -> String {
    ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Bytes with a unit, in at most four digits.
pub(super) fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 + usize::from(value < 9.995) };
    format!("{value:.digits$} {}", UNITS[unit])
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn amounts_are_short_and_true() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1.00 KiB"),
            (10 * 1024, "10.0 KiB"),
            (1_047_552, "1.00 MiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }
}
