//! The manifest: what goes ahead of a message of tensors and says what they are. A binary format, not a program: it is
//! read with bounds, and bytes that are no manifest are refused with the reason, whoever sent them.
//!
//! # Version 1
//!
//! All numbers are little-endian, without padding. A header of 32 bytes:
//!
//! | at | bytes | what |
//! |----|-------|------|
//! |  0 | 4 | the letters `TDCT` |
//! |  4 | 2 | version: 1 |
//! |  6 | 1 | what it is: 0 a dict, 1 an object, which is one record without a name, of bytes |
//! |  7 | 1 | 0 |
//! |  8 | 4 | length of the manifest in bytes, the header included; at most [`LONGEST`] |
//! | 12 | 4 | records; at most [`MOST_RECORDS`] |
//! | 16 | 4 | parts: ranks that each send a slice of every sliced tensor; 1 where nothing is sliced |
//! | 20 | 4 | part: which of them this message carries |
//! | 24 | 8 | bytes of data that follow the manifest, all tensors or their slices together |
//!
//! Then the records, in the order of the data:
//!
//! | bytes | what |
//! |-------|------|
//! | 1 | dtype, with its number |
//! | 1 | device: 1 host memory, 2 CUDA |
//! | 1 | dimensions; at most [`MAX_DIMENSIONS`] |
//! | 1 | 1 if the message carries a slice of it, else 0 |
//! | 2 | length of the name; at most [`LONGEST_NAME`] |
//! | n | name: UTF-8 without NUL, different from all others |
//! | 8 d | shape: extents, unsigned |
//! | 8 d | strides in elements, signed: the order of the elements in the data, which has no gaps |
//!
//! A slice is the `part`-th of `parts` runs of elements, counted as they lie in the data: all runs are as long as the
//! first, as far as there are elements.

use std::{collections::HashSet, fmt, ops::Range};

use super::shape::{MAX_DIMENSIONS, Shape};
use crate::dtype::DType;

/// The longest manifest, in bytes.
pub const LONGEST: usize = 1 << 20;
/// The most tensors of a message.
pub const MOST_RECORDS: usize = 1 << 14;
/// The longest name, in bytes.
pub const LONGEST_NAME: usize = 255;
/// The most ranks that send slices of one tensor.
pub const MOST_PARTS: u32 = 1 << 16;
/// Bytes of the header.
pub const HEADER: usize = 32;

const MAGIC: [u8; 4] = *b"TDCT";
const VERSION: u16 = 1;
/// Bytes of a record without name and dimensions.
const RECORD: usize = 6;

/// Where a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Device {
    /// In host memory.
    Host = 1,
    /// In memory of a CUDA device.
    Cuda = 2,
}

impl Device {
    fn parse(code: u8) -> Option<Self> {
        [Device::Host, Device::Cuda].into_iter().find(|device| *device as u8 == code)
    }
}

/// One tensor of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name among the others.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// Where the sender has it.
    pub device: Device,
    /// Its extents, and the order in which its elements travel: dense.
    pub shape: Shape,
    /// Whether the message carries a slice of it.
    pub sliced: bool,
}

impl Record {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> usize {
        self.shape.count() as usize * self.dtype.size()
    }
}

/// What a message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whether it is an object: one record of bytes without a name.
    pub object: bool,
    /// Ranks that send slices.
    pub parts: u32,
    /// Which slices these are.
    pub part: u32,
    /// The tensors, in the order of the data.
    pub records: Vec<Record>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refusal(text: impl fmt::Display) -> Refusal {
    Refusal(text.to_string())
}

impl Manifest {
    /// The bytes of a record's data that the message carries, counted in the whole tensor's.
    pub fn window(&self, record: &Record) -> Range<usize> {
        if !record.sliced {
            return 0..record.bytes();
        }
        let run = self.run(record);
        let start = (run * self.part as usize).min(record.bytes());
        start..(start + run).min(record.bytes())
    }

    /// The bytes of the first slice of a record, than which none is longer.
    pub fn run(&self, record: &Record) -> usize {
        record.shape.count().div_ceil(u64::from(self.parts.max(1))) as usize * record.dtype.size()
    }

    /// Bytes of data that the message carries.
    pub fn payload(&self) -> u64 {
        self.records.iter().map(|record| self.window(record).len() as u64).sum()
    }

    /// The bytes of the manifest; refused where they could not be read.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        let mut bytes = Vec::with_capacity(HEADER + self.records.len() * (RECORD + 64));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.object), 0]);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.parts.to_le_bytes());
        bytes.extend_from_slice(&self.part.to_le_bytes());
        bytes.extend_from_slice(&self.payload().to_le_bytes());
        for record in &self.records {
            let dimensions = record.shape.extents().len() as u8;
            bytes.extend_from_slice(&[record.dtype as u8, record.device as u8, dimensions, u8::from(record.sliced)]);
            bytes.extend_from_slice(&(record.name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(record.name.as_bytes());
            record.shape.extents().iter().for_each(|extent| bytes.extend_from_slice(&extent.to_le_bytes()));
            record.shape.strides().iter().for_each(|stride| bytes.extend_from_slice(&stride.to_le_bytes()));
        }
        if bytes.len() > LONGEST {
            return Err(refusal(format_args!(
                "names and shapes take {} bytes; at most {LONGEST} are sent",
                bytes.len()
            )));
        }
        let length = (bytes.len() as u32).to_le_bytes();
        bytes[8..12].copy_from_slice(&length);
        Ok(bytes)
    }

    /// The length of the manifest that begins with these bytes.
    pub fn length(header: &[u8]) -> Result<usize, Refusal> {
        let mut reader = Reader(header);
        Header::read(&mut reader).map(|header| header.length)
    }

    /// Reads a manifest; `bytes` are all of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader(bytes);
        let header = Header::read(&mut reader)?;
        if header.length != bytes.len() {
            return Err(refusal(format_args!("it says that it has {} bytes, but has {}", header.length, bytes.len())));
        }
        // A record has a size of its own, so what is allocated is bounded by what came.
        if header.records > MOST_RECORDS || header.records > reader.0.len() / RECORD {
            return Err(refusal(format_args!("{} records cannot be in {} bytes", header.records, reader.0.len())));
        }
        let mut records = Vec::with_capacity(header.records);
        for _ in 0..header.records {
            records.push(record(&mut reader)?);
        }
        if !reader.0.is_empty() {
            return Err(refusal(format_args!("{} bytes follow its last record", reader.0.len())));
        }
        let manifest = Manifest { object: header.object, parts: header.parts, part: header.part, records };
        manifest.check()?;
        if manifest.payload() != header.payload {
            return Err(refusal(format_args!(
                "it announces {} bytes of data for tensors of {}",
                header.payload,
                manifest.payload()
            )));
        }
        Ok(manifest)
    }

    /// What encoding and decoding promise alike.
    fn check(&self) -> Result<(), Refusal> {
        if self.records.len() > MOST_RECORDS {
            return Err(refusal(format_args!(
                "{} tensors are more than the {MOST_RECORDS} of a dict",
                self.records.len()
            )));
        }
        if self.parts == 0 || self.parts > MOST_PARTS || self.part >= self.parts {
            return Err(refusal(format_args!("part {} of {} does not exist", self.part, self.parts)));
        }
        let is_object = |record: &Record| {
            record.name.is_empty() && record.dtype == DType::Bytes && record.shape.extents().len() == 1
        };
        if self.object && !matches!(self.records.as_slice(), [one] if is_object(one)) {
            return Err(refusal("an object is one record of bytes without a name"));
        }
        let mut names = HashSet::with_capacity(self.records.len());
        let mut payload = 0_u64;
        for record in &self.records {
            let name = &record.name;
            if name.len() > LONGEST_NAME || name.contains('\0') {
                return Err(refusal(format_args!("a name is longer than {LONGEST_NAME} bytes, or has a NUL in it")));
            }
            if !names.insert(name.as_str()) {
                return Err(refusal(format_args!("two tensors are named {name:?}")));
            }
            if !record.shape.is_dense() {
                return Err(refusal(format_args!("the data of tensor {name:?} would have gaps")));
            }
            if record.sliced && self.parts == 1 {
                return Err(refusal(format_args!("tensor {name:?} is sliced, but there is one part")));
            }
            payload = payload.saturating_add(record.bytes() as u64);
        }
        if payload > isize::MAX as u64 {
            return Err(refusal("all tensors together are more than can be addressed"));
        }
        Ok(())
    }
}

struct Header {
    object: bool,
    length: usize,
    records: usize,
    parts: u32,
    part: u32,
    payload: u64,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Refusal> {
        if reader.take::<4>()? != MAGIC {
            return Err(refusal("it does not begin as one"));
        }
        let version = u16::from_le_bytes(reader.take()?);
        if version != VERSION {
            return Err(refusal(format_args!("it is of version {version}, and this library knows version {VERSION}")));
        }
        let [what, zero] = reader.take()?;
        if what > 1 || zero != 0 {
            return Err(refusal(format_args!("it is of a kind {what} that this library does not know")));
        }
        let length = u32::from_le_bytes(reader.take()?) as usize;
        if !(HEADER..=LONGEST).contains(&length) {
            return Err(refusal(format_args!("its length {length} is not between {HEADER} and {LONGEST}")));
        }
        Ok(Header {
            object: what == 1,
            length,
            records: u32::from_le_bytes(reader.take()?) as usize,
            parts: u32::from_le_bytes(reader.take()?),
            part: u32::from_le_bytes(reader.take()?),
            payload: u64::from_le_bytes(reader.take()?),
        })
    }
}

fn record(reader: &mut Reader<'_>) -> Result<Record, Refusal> {
    let [dtype, device, dimensions, sliced] = reader.take()?;
    let length = u16::from_le_bytes(reader.take()?);
    let name = std::str::from_utf8(reader.bytes(length.into())?).map_err(|_| refusal("a name is no UTF-8"))?;
    let refused = |what: &str, code: u8| refusal(format_args!("tensor {name:?} has the {what} {code}"));
    let dtype = DType::parse(dtype.into()).map_err(|_| refused("dtype", dtype))?;
    let device = Device::parse(device).ok_or_else(|| refused("device", device))?;
    if sliced > 1 {
        return Err(refused("flag", sliced));
    }
    if usize::from(dimensions) > MAX_DIMENSIONS {
        return Err(refused("number of dimensions", dimensions));
    }
    let dimensions = usize::from(dimensions);
    let (mut extents, mut strides) = ([0; MAX_DIMENSIONS], [0; MAX_DIMENSIONS]);
    for extent in &mut extents[..dimensions] {
        *extent = u64::from_le_bytes(reader.take()?);
    }
    for stride in &mut strides[..dimensions] {
        *stride = i64::from_le_bytes(reader.take()?);
    }
    let shape = Shape::new(&extents[..dimensions], &strides[..dimensions], dtype.size())
        .map_err(|error| refusal(format_args!("tensor {name:?}: {error}")))?;
    Ok(Record { name: name.to_owned(), dtype, device, shape, sliced: sliced == 1 })
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(ended)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(ended)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn ended() -> Refusal {
    refusal("it ends in the middle")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::REDUCIBLE;

    fn record(name: &str, extents: &[u64], dtype: DType) -> Record {
        let shape = Shape::rows(extents, dtype.size()).unwrap();
        Record { name: name.into(), dtype, device: Device::Host, shape, sliced: false }
    }

    fn whole(records: Vec<Record>) -> Manifest {
        Manifest { object: false, parts: 1, part: 0, records }
    }

    #[test]
    fn version_1_is_what_it_is() {
        let mut manifest = whole(vec![record("h", &[2, 3], DType::Bfloat16)]);
        (manifest.parts, manifest.part, manifest.records[0].sliced) = (4, 1, true);
        let mut expected = b"TDCT\x01\0\0\0".to_vec();
        expected.extend([71, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([9, 1, 2, 1, 1, 0, b'h']);
        for number in [2_u64, 3, 3, 1] {
            expected.extend(number.to_le_bytes());
        }
        assert_eq!(manifest.encode().unwrap(), expected);
        assert_eq!(Manifest::decode(&expected).unwrap(), manifest);
        assert_eq!(Manifest::length(&expected).unwrap(), 71);
    }

    #[test]
    fn slices_cover_every_tensor_once_whatever_its_size() {
        for count in [0_u64, 1, 2, 7, 8, 9, 63, 64, 65] {
            for parts in [2, 3, 4, 8] {
                let mut manifest = whole(vec![record("t", &[count], DType::Float32)]);
                manifest.parts = parts;
                manifest.records[0].sliced = true;
                let mut next = 0;
                for part in 0..parts {
                    manifest.part = part;
                    let window = manifest.window(&manifest.records[0]);
                    assert!(
                        window.start == next
                            && window.len().is_multiple_of(4)
                            && window.len() <= manifest.run(&manifest.records[0])
                    );
                    next = window.end;
                }
                assert_eq!(next, count as usize * 4);
            }
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let good = whole(vec![record("a", &[2], DType::Int8), record("b", &[3], DType::Int64)]);
        let bytes = good.encode().unwrap();
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            Manifest::decode(&bytes).unwrap_err().to_string()
        };
        assert!(broken(&|bytes| bytes.clear()).contains("ends in the middle"));
        assert!(broken(&|bytes| bytes[0] = b'X').contains("does not begin"));
        assert!(broken(&|bytes| bytes[4] = 2).contains("of version 2"));
        assert!(broken(&|bytes| bytes[6] = 1).contains("an object is one record"));
        assert!(broken(&|bytes| bytes[6] = 9).contains("of a kind 9"));
        assert!(broken(&|bytes| bytes[11] = 0xff).contains("its length"));
        assert!(broken(&|bytes| bytes[15] = 0xff).contains("records cannot be in"));
        assert!(broken(&|bytes| bytes[12] = 1).contains("follow its last record"));
        assert!(broken(&|bytes| bytes[12] = 3).contains("ends in the middle"));
        assert!(broken(&|bytes| bytes[16] = 0).contains("part 0 of 0"));
        assert!(broken(&|bytes| bytes[20] = 1).contains("part 1 of 1"));
        assert!(broken(&|bytes| bytes[24] = 1).contains("announces 1 bytes of data"));
        assert!(broken(&|bytes| bytes[32] = 50).contains("has the dtype 50"));
        assert!(broken(&|bytes| bytes[33] = 0).contains("has the device 0"));
        assert!(broken(&|bytes| bytes[34] = 17).contains("number of dimensions 17"));
        assert!(broken(&|bytes| bytes[35] = 1).contains("is sliced"));
        assert!(broken(&|bytes| bytes[35] = 2).contains("the flag 2"));
        assert!(broken(&|bytes| bytes[38] = 0xff).contains("no UTF-8"));
        assert!(broken(&|bytes| bytes[38] = b'b').contains("two tensors are named \"b\""));
        assert!(broken(&|bytes| bytes[38] = 0).contains("NUL"));
        assert!(broken(&|bytes| bytes[46] = 0xff).contains("more than can be addressed"), "the extent");
        assert!(broken(&|bytes| bytes[47] = 2).contains("gaps"), "the stride");
        whole(vec![record("same", &[1], DType::Int8); 2]).encode().unwrap_err();
        whole(vec![record(&"x".repeat(256), &[1], DType::Int8)]).encode().unwrap_err();
        let many = |count: usize| whole((0..count).map(|i| record(&i.to_string(), &[], DType::Bool)).collect());
        many(MOST_RECORDS).encode().unwrap();
        many(MOST_RECORDS + 1).encode().unwrap_err();
        let long: Vec<_> = (0..5000).map(|i| record(&format!("{i:0>250}"), &[1; 4], DType::Bool)).collect();
        assert!(whole(long).encode().unwrap_err().to_string().contains("at most 1048576 are sent"));
    }

    fn manifests() -> impl Strategy<Value = Manifest> {
        let dtype = prop::sample::select(
            REDUCIBLE.into_iter().chain([DType::Bool, DType::Int16, DType::Bytes]).collect::<Vec<_>>(),
        );
        let extents = prop::collection::vec(0..6_u64, 0..5);
        let record = ("[a-zé.]{0,12}", dtype, extents, any::<bool>(), any::<bool>(), any::<bool>());
        (prop::collection::vec(record, 0..12), 1..5_u32, any::<u32>()).prop_map(|(records, parts, part)| {
            let records = records.into_iter().enumerate().map(|(i, (name, dtype, extents, cuda, sliced, turned))| {
                let rows = Shape::rows(&extents, dtype.size()).unwrap();
                let mut strides = rows.strides().to_vec();
                let mut extents = extents;
                if turned {
                    strides.reverse();
                    extents.reverse();
                }
                Record {
                    name: format!("{name}{i}"),
                    dtype,
                    device: if cuda { Device::Cuda } else { Device::Host },
                    shape: Shape::new(&extents, &strides, dtype.size()).unwrap(),
                    sliced: sliced && parts > 1,
                }
            });
            Manifest { object: false, parts, part: part % parts, records: records.collect() }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn what_was_written_is_read(manifest in manifests()) {
            let bytes = manifest.encode().unwrap();
            prop_assert_eq!(Manifest::length(&bytes[..HEADER]).unwrap(), bytes.len());
            prop_assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        }

        #[test]
        fn a_part_of_a_manifest_is_none(manifest in manifests(), cut in any::<prop::sample::Index>()) {
            let bytes = manifest.encode().unwrap();
            Manifest::decode(&bytes[..cut.index(bytes.len())]).unwrap_err();
            let mut more = bytes.clone();
            more.push(0);
            Manifest::decode(&more).unwrap_err();
        }

        /// Hostile bytes: near the real thing, so that they get past the first checks.
        #[test]
        fn changed_bytes_are_refused_or_mean_something_that_can_be_written_again(
            manifest in manifests(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = manifest.encode().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(read) = Manifest::decode(&bytes) {
                prop_assert_eq!(read.encode().unwrap(), bytes);
                for record in &read.records {
                    prop_assert!(read.window(record).end <= record.bytes());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..512), header in any::<bool>()) {
            if header && bytes.len() >= HEADER {
                let length = bytes.len() as u32;
                bytes[..8].copy_from_slice(b"TDCT\x01\0\0\0");
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                bytes[14..16].fill(0);
            }
            let _ = (Manifest::decode(&bytes), Manifest::length(&bytes));
        }
    }
}
