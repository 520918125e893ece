//! How the data of a message is divided into loads, each of which travels as one: a large tensor alone, from where it
//! lies to where it is wanted; small ones packed together. Pure, and found from the manifest alone, so both sides agree.

use super::manifest::Manifest;

/// Tensors to this size are packed: a copy at either end costs less than a message of their own, about a microsecond.
pub(crate) const SMALL: usize = 4 * 1024;
/// A pack is closed when it has this many bytes, so that it is on its way while the next is packed.
const PACK: usize = 256 * 1024;
/// What tensors are aligned to, in packs and in memory of the library.
pub(crate) const ALIGNMENT: usize = 64;

/// What travels as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The message's part of one tensor: its number among the records.
    One(usize),
    /// Several whole tensors, with the place of each, and the bytes of all.
    Pack(Vec<(usize, usize)>, usize),
}

/// The loads of a message, in the order in which they travel. Tensors without elements need none.
pub(crate) fn loads(manifest: &Manifest) -> Vec<Load> {
    let mut loads = Vec::new();
    let (mut pack, mut bytes) = (Vec::new(), 0_usize);
    let close = |pack: &mut Vec<(usize, usize)>, bytes: &mut usize, loads: &mut Vec<Load>| {
        let (pack, bytes) = (std::mem::take(pack), std::mem::take(bytes));
        match pack.as_slice() {
            [] => {}
            [(alone, _)] => loads.push(Load::One(*alone)),
            _ => loads.push(Load::Pack(pack, bytes)),
        }
    };
    for (index, record) in manifest.records.iter().enumerate() {
        let size = record.bytes();
        if size == 0 {
            continue;
        }
        // A slice may be empty, but then too its ranks gather with the others.
        if record.sliced || size > SMALL {
            loads.push(Load::One(index));
            continue;
        }
        let at = bytes.next_multiple_of(ALIGNMENT);
        pack.push((index, at));
        bytes = at + size;
        if bytes >= PACK {
            close(&mut pack, &mut bytes, &mut loads);
        }
    }
    close(&mut pack, &mut bytes, &mut loads);
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dtype::DType,
        tensor::{
            manifest::{Device, Record},
            shape::Shape,
        },
    };

    fn manifest(sizes: &[u64]) -> Manifest {
        let record = |(i, size): (usize, &u64)| Record {
            name: i.to_string(),
            dtype: DType::Uint8,
            device: Device::Host,
            shape: Shape::rows(&[*size], 1).unwrap(),
            sliced: false,
        };
        Manifest { object: false, parts: 1, part: 0, records: sizes.iter().enumerate().map(record).collect() }
    }

    #[test]
    fn small_tensors_share_a_load_and_large_ones_travel_alone() {
        let large = SMALL as u64 + 1;
        assert_eq!(
            loads(&manifest(&[3, 0, 100, large, 5])),
            [Load::One(3), Load::Pack(vec![(0, 0), (2, 64), (4, 192)], 197)]
        );
        assert_eq!(loads(&manifest(&[7])), [Load::One(0)]);
        assert_eq!(loads(&manifest(&[0, 0])), []);
        let packs = loads(&manifest(&[SMALL as u64; 2 * PACK / SMALL + 1]));
        assert_eq!(packs.len(), 3, "packs are closed when they are large enough");
    }

    #[test]
    fn every_tensor_is_in_one_load_and_packs_do_not_overlap() {
        let sizes: Vec<u64> = (0..500).map(|i| i * 7919 % 40_000).collect();
        let manifest = manifest(&sizes);
        let mut seen = vec![0; sizes.len()];
        for load in loads(&manifest) {
            match load {
                Load::One(index) => seen[index] += 1,
                Load::Pack(pack, bytes) => {
                    let mut end = 0;
                    for (index, at) in pack {
                        assert!(at >= end && at % ALIGNMENT == 0);
                        end = at + sizes[index] as usize;
                        seen[index] += 1;
                    }
                    assert_eq!(end, bytes);
                }
            }
        }
        assert!(seen.iter().zip(&sizes).all(|(seen, size)| *seen == u32::from(*size > 0)));
    }
}
