//! The promises about v-forms: parts that differ in size from rank to rank.

use std::sync::Arc;

use tutti::{
    communicator::{Part, Uneven},
    config::Timeout,
    dtype::{Collective, DType, OPS, Op, REDUCIBLE},
    error::Status,
    group::{Group, batch},
};

use crate::{
    harness::{Buffer, Random, descriptor, on_all_ranks, world},
    oracle,
    promises::contribution,
};

const PATIENT: i64 = 120_000;

/// A v-form as one rank makes it, in elements; what every rank sends and expects is known to the test.
pub(crate) struct Form {
    pub(crate) collective: Collective,
    pub(crate) dtype: DType,
    pub(crate) op: Op,
    /// `counts[i][j]`: what rank `i` gives to rank `j`. Alike in all rows or columns where the collective has one list.
    pub(crate) counts: Vec<Vec<usize>>,
    /// Elements left free between two parts.
    pub(crate) gap: usize,
    pub(crate) in_place: bool,
    pub(crate) seed: u64,
}

/// One rank's memory for a form, the call that uses it, and what must stand in it when the call is done.
pub(crate) struct Side {
    pub(crate) send: Buffer,
    pub(crate) recv: Buffer,
    pub(crate) call: Uneven,
    dtype: DType,
    wanted: Vec<u8>,
    /// Which bytes of `recv` the call writes.
    written: Vec<Part>,
    in_place: bool,
    sent: Vec<u8>,
}

const FREE: u8 = 0x55;

impl Form {
    /// Random counts, some of them zero.
    pub(crate) fn random(random: &mut Random, size: usize, most: usize) -> Form {
        let collective = [Collective::AllGatherV, Collective::ReduceScatterV, Collective::AllToAllV][random.below(3)];
        let dtype = match collective.reduces() {
            true => REDUCIBLE[random.below(REDUCIBLE.len())],
            false => {
                REDUCIBLE.into_iter().chain([DType::Bool, DType::Int16, DType::Bytes]).nth(random.below(15)).unwrap()
            }
        };
        let mut count = || if random.below(4) == 0 { 0 } else { random.below(most + 1) };
        let list: Vec<usize> = (0..size).map(|_| count()).collect();
        let counts = match collective {
            Collective::AllGatherV => list.iter().map(|count| vec![*count; size]).collect(),
            Collective::ReduceScatterV => vec![list; size],
            _ => (0..size).map(|_| (0..size).map(|_| count()).collect()).collect(),
        };
        let (op, gap, in_place) = (OPS[random.below(5)], random.below(3), random.below(2) == 0);
        let in_place = in_place && collective != Collective::AllToAllV;
        Form { collective, dtype, op, counts, gap, in_place, seed: random.next() }
    }

    /// What rank `from` gives to each rank, from the definition.
    fn gifts(&self, from: usize) -> Vec<Vec<u8>> {
        let size = self.counts.len();
        match self.collective {
            // The same to everybody.
            Collective::AllGatherV => {
                vec![contribution(self.dtype, self.counts[from][0], self.seed, from as u32); size]
            }
            _ => (0..size)
                .map(|to| contribution(self.dtype, self.counts[from][to], self.seed + to as u64, from as u32))
                .collect(),
        }
    }

    /// Lays parts out, with gaps.
    fn lay_out(&self, counts: impl Iterator<Item = usize>) -> (Vec<Part>, usize) {
        let mut at = 0;
        let parts = counts
            .map(|count| {
                let part = Part { start: at * self.dtype.size(), bytes: count * self.dtype.size() };
                at += count + self.gap;
                part
            })
            .collect();
        (parts, at * self.dtype.size())
    }

    pub(crate) fn side(&self, me: usize) -> Side {
        let size = self.counts.len();
        let everybody: Vec<_> = (0..size).map(|from| self.gifts(from)).collect();
        let fill = |parts: &[Part], bytes: usize, content: &dyn Fn(usize) -> Vec<u8>| {
            let mut memory = vec![FREE; bytes];
            for (rank, part) in parts.iter().enumerate() {
                memory[part.start..part.start + part.bytes].copy_from_slice(&content(rank));
            }
            memory
        };
        let one = |bytes: usize| (vec![Part { start: 0, bytes }; size], bytes);
        let element = self.dtype.size();
        let (send_parts, send_bytes) = match self.collective {
            Collective::AllGatherV => one(self.counts[me][0] * element),
            _ => self.lay_out(self.counts[me].iter().copied()),
        };
        let (recv_parts, recv_bytes) = match self.collective {
            Collective::ReduceScatterV => one(self.counts[me][me] * element),
            _ => self.lay_out(self.counts.iter().map(|row| row[me])),
        };
        let sent = match self.collective {
            Collective::AllGatherV => everybody[me][0].clone(),
            _ => fill(&send_parts, send_bytes, &|to| everybody[me][to].clone()),
        };
        let wanted = match self.collective {
            Collective::ReduceScatterV => {
                let columns: Vec<_> = everybody.iter().map(|gifts| gifts[me].clone()).collect();
                oracle::reduce(self.dtype, self.op, &columns)
            }
            _ => fill(&recv_parts, recv_bytes, &|from| everybody[from][me].clone()),
        };
        let mut send = Buffer::new(&sent, 1);
        let mut recv = Buffer::new(&vec![FREE; recv_bytes], 3);
        let list: Vec<u64> = match self.collective {
            Collective::AllGatherV => self.counts.iter().map(|row| row[0] as u64).collect(),
            _ => self.counts[0].iter().map(|count| *count as u64).collect(),
        };
        let what = match self.collective {
            Collective::AllToAllV => descriptor(self.collective, self.dtype, Op::Sum, 0, 0),
            Collective::AllGatherV => Uneven::descriptor(self.collective, self.dtype, Op::Sum, 0, &list),
            _ => Uneven::descriptor(self.collective, self.dtype, self.op, 0, &list),
        };
        let (mut from, mut to) = (send.address().cast_const(), recv.address());
        if self.in_place && self.collective == Collective::AllGatherV {
            let mut whole = vec![FREE; recv_bytes];
            whole[recv_parts[me].start..][..sent.len()].copy_from_slice(&sent);
            recv = Buffer::new(&whole, 3);
            to = recv.address();
            from = to.wrapping_add(recv_parts[me].start);
        } else if self.in_place && self.collective == Collective::ReduceScatterV {
            to = from.cast_mut().wrapping_add(send_parts[me].start);
        }
        let written =
            if self.collective == Collective::ReduceScatterV { vec![recv_parts[0]] } else { recv_parts.clone() };
        let call =
            Uneven { descriptor: what, send: from, send_parts, recv: to, recv_parts, stream: crate::device::stream() };
        Side { send, recv, call, dtype: self.dtype, wanted, written, in_place: self.in_place, sent }
    }
}

impl Side {
    pub(crate) fn check(&mut self, case: &str) {
        self.send.check_guards();
        self.recv.check_guards();
        let reduced_in_place = self.in_place && self.call.descriptor.collective == Collective::ReduceScatterV;
        let result = match reduced_in_place {
            true => {
                let at = self.call.recv.addr() - self.send.address().addr();
                self.send.bytes()[at..at + self.wanted.len()].to_vec()
            }
            false => self.recv.bytes().to_vec(),
        };
        for part in &self.written {
            let range = part.start..part.start + part.bytes;
            oracle::same(self.dtype, &self.wanted[range.clone()], &result[range])
                .unwrap_or_else(|error| panic!("{case}: {} at {part:?}: {error}", self.call.descriptor));
        }
        if !reduced_in_place {
            assert_eq!(self.send.bytes(), self.sent, "{case}: the input was changed");
            let mut outside = vec![true; result.len()];
            self.written.iter().for_each(|part| outside[part.start..part.start + part.bytes].fill(false));
            assert!(
                outside.iter().zip(&result).all(|(outside, byte)| !outside || *byte == FREE),
                "{case}: bytes between the parts were written"
            );
        }
    }
}

pub(crate) fn uneven_parts_come_to_their_places(communicator: &str) {
    for size in [1, 2, 3, 4, 7, 8] {
        let groups = world(communicator, size, PATIENT);
        let mut random = Random(u64::from(size) + 77);
        for round in 0..30 {
            let most = [0, 1, 50, 9_000, 40_000][round % 5];
            let form = Form::random(&mut random, size as usize, most);
            on_all_ranks(&groups, |group| {
                let mut side = form.side(group.rank() as usize);
                match round % 3 {
                    0 => group.run_uneven(side.call.clone(), Timeout::Default).unwrap(),
                    1 => {
                        let request = group.start_uneven(side.call.clone(), Timeout::Default).unwrap();
                        request.wait(Timeout::Default).unwrap();
                    }
                    _ => {
                        batch::begin().unwrap();
                        group.run_uneven(side.call.clone(), Timeout::Default).unwrap();
                        batch::end().unwrap();
                    }
                }
                side.check(&format!("rank {} of {size}, round {round}", group.rank()));
            });
        }
    }
}

pub(crate) fn ranks_whose_counts_differ_get_mismatch_and_no_output(communicator: &str) {
    for collective in [Collective::AllGatherV, Collective::ReduceScatterV, Collective::AllToAllV] {
        let groups = world(communicator, 3, PATIENT);
        let form = |counts: Vec<Vec<usize>>| Form {
            collective,
            dtype: DType::Int32,
            op: Op::Sum,
            counts,
            gap: 0,
            in_place: false,
            seed: 5,
        };
        on_all_ranks(&groups, |group: &Arc<Group>| {
            let me = group.rank() as usize;
            // Rank 1 has another idea of what concerns ranks 2 and 1, with the same sum where there is one.
            let counts = match (collective, me) {
                (Collective::AllGatherV, 1) => vec![vec![5; 3], vec![6; 3], vec![4; 3]],
                (Collective::AllGatherV, _) => vec![vec![5; 3], vec![5; 3], vec![5; 3]],
                (Collective::ReduceScatterV, 1) => vec![vec![5, 6, 4]; 3],
                (Collective::ReduceScatterV, _) => vec![vec![5, 5, 5]; 3],
                (_, 1) => vec![vec![5; 3], vec![5; 3], vec![5, 9, 5]],
                _ => vec![vec![5; 3]; 3],
            };
            let side = form(counts).side(me);
            let mut outcome = group.run_uneven(side.call.clone(), Timeout::Default);
            if outcome.is_ok() {
                outcome = group.sync(Timeout::Default);
            }
            let error = outcome.unwrap_err();
            assert_eq!(error.status(), Status::Mismatch, "{error}");
            if collective == Collective::AllToAllV {
                let text = "rank 2 sends 5 x int32 to rank 1, which expects 9";
                assert!(error.to_string().contains(text), "{error}");
            }
            assert!(side.recv.bytes().iter().all(|byte| *byte == FREE), "an output was written");
        });
    }
}
