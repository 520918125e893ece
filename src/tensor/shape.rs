//! Where the elements of a tensor lie: shapes and strides, checked, and copies between any two of them.
//!
//! Pure but for the copies. Whatever comes from a caller or a peer is checked before it is multiplied.

use std::fmt;

use crate::error::{Error, Result};

/// The most dimensions of a tensor.
pub const MAX_DIMENSIONS: usize = 16;

/// A shape with strides, both in elements. Allocates nothing: a dict has many.
#[derive(Clone, PartialEq, Eq)]
pub struct Shape {
    dimensions: u8,
    /// 0 beyond the dimensions, as the strides are.
    extents: [u64; MAX_DIMENSIONS],
    strides: [i64; MAX_DIMENSIONS],
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape").field("extents", &self.extents()).field("strides", &self.strides()).finish()
    }
}

impl Shape {
    /// A shape whose elements lie row by row without gaps; refused where its bytes cannot be addressed.
    pub fn rows(extents: &[u64], element: usize) -> Result<Self> {
        let dimensions = extents.len().min(MAX_DIMENSIONS);
        // More than can be are refused below, before anything is read of them.
        let strides = rows(&extents[..dimensions]);
        Self::new(extents, strides.get(..extents.len()).unwrap_or(&strides), element)
    }

    /// A shape with these strides. Checks that the number of elements and the farthest of them can be addressed; what
    /// memory there really is only the caller knows.
    pub fn new(extents: &[u64], strides: &[i64], element: usize) -> Result<Self> {
        if extents.len() > MAX_DIMENSIONS || strides.len() != extents.len() {
            return Err(Error::invalid(format_args!(
                "a tensor has at most {MAX_DIMENSIONS} dimensions and a stride for each, not {} and {} strides",
                extents.len(),
                strides.len()
            )));
        }
        let too_large = || Error::invalid(format_args!("a tensor of shape {extents:?} is more than can be addressed"));
        // Extents beside a 0 are checked too, since whoever allocates by parts of them would overflow.
        let product = extents.iter().try_fold(1_u64, |all, extent| all.checked_mul((*extent).max(1)));
        product
            .and_then(|count| count.checked_mul(element as u64))
            .filter(|bytes| *bytes <= isize::MAX as u64)
            .ok_or_else(too_large)?;
        let mut reach = 0_u64;
        for (extent, stride) in extents.iter().zip(strides) {
            let far = stride.unsigned_abs().checked_mul(extent.saturating_sub(1)).ok_or_else(too_large)?;
            reach = reach.checked_add(far).ok_or_else(too_large)?;
        }
        if reach.checked_mul(element as u64).is_none_or(|bytes| bytes > isize::MAX as u64) {
            return Err(too_large());
        }
        Ok(Self::of(extents, strides))
    }

    /// Both as long, and no longer than possible.
    fn of(extents: &[u64], strides: &[i64]) -> Self {
        let mut shape =
            Shape { dimensions: extents.len() as u8, extents: [0; MAX_DIMENSIONS], strides: [0; MAX_DIMENSIONS] };
        shape.extents[..extents.len()].copy_from_slice(extents);
        shape.strides[..strides.len()].copy_from_slice(strides);
        shape
    }

    /// The extents.
    pub fn extents(&self) -> &[u64] {
        &self.extents[..self.dimensions.into()]
    }

    /// The strides, in elements.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.dimensions.into()]
    }

    /// Elements.
    pub fn count(&self) -> u64 {
        self.extents().iter().product()
    }

    /// Whether the elements fill one stretch of memory from the first on, each once, in whatever order of dimensions: then
    /// they can be moved as they lie. Dimensions of one element have any stride.
    pub fn is_dense(&self) -> bool {
        if self.count() == 0 {
            return true;
        }
        // Each dimension in turn must continue those that are nearer: which it is, its stride says.
        let dimensions = || self.strides().iter().zip(self.extents()).filter(|(_, extent)| **extent > 1);
        let mut next = 1_u64;
        for _ in dimensions() {
            let Some((_, extent)) = dimensions().find(|(stride, _)| u64::try_from(**stride) == Ok(next)) else {
                return false;
            };
            next *= extent;
        }
        true
    }

    /// The same extents as they travel: as they lie where that is dense, else row by row.
    pub fn on_the_way(&self) -> Shape {
        if self.is_dense() {
            return self.clone();
        }
        let extents = self.extents();
        Self::of(extents, &rows(extents)[..extents.len()])
    }

    /// Whether both put every element in the same place.
    pub fn is_alike(&self, other: &Shape) -> bool {
        self.extents() == other.extents()
            && (self.count() == 0
                || (0..self.extents().len()).all(|i| self.extents[i] < 2 || self.strides[i] == other.strides[i]))
    }
}

/// The strides of a shape whose elements lie row by row: as many as there are extents.
fn rows(extents: &[u64]) -> [i64; MAX_DIMENSIONS] {
    let mut strides = [0; MAX_DIMENSIONS];
    let mut next = 1_i64;
    for (stride, extent) in strides[..extents.len()].iter_mut().zip(extents).rev() {
        *stride = next;
        next = next.saturating_mul(i64::try_from(*extent).unwrap_or(i64::MAX).max(1));
    }
    strides
}

/// Copies all elements from one place to another of the same extents.
///
/// # Safety
/// `from` is readable and `to` writable wherever their shapes put an element of `element` bytes, and no element of one
/// overlaps any of the other, nor two of `to` each other.
pub unsafe fn copy(from: *const u8, from_shape: &Shape, to: *mut u8, to_shape: &Shape, element: usize) {
    debug_assert_eq!(from_shape.extents(), to_shape.extents());
    if from_shape.count() == 0 {
        return;
    }
    if from_shape.is_alike(to_shape) && to_shape.is_dense() {
        // SAFETY: the elements fill one stretch on either side, in the same order.
        return unsafe { std::ptr::copy_nonoverlapping(from, to, to_shape.count() as usize * element) };
    }
    // Dimensions from the one whose elements lie farthest apart in `to`, those that continue each other in both merged.
    let mut order: Vec<usize> = (0..to_shape.extents().len()).filter(|i| to_shape.extents[*i] > 1).collect();
    order.sort_by_key(|i| std::cmp::Reverse(to_shape.strides[*i].unsigned_abs()));
    let mut dimensions: Vec<(u64, i64, i64)> = Vec::with_capacity(order.len());
    for i in order {
        let (extent, source, target) = (to_shape.extents[i], from_shape.strides[i], to_shape.strides[i]);
        match dimensions.last_mut() {
            Some((outer, outer_source, outer_target))
                if *outer_source == source.wrapping_mul(extent as i64)
                    && *outer_target == target.wrapping_mul(extent as i64) =>
            {
                *outer *= extent;
                (*outer_source, *outer_target) = (source, target);
            }
            _ => dimensions.push((extent, source, target)),
        }
    }
    // A last dimension without gaps on either side is one run of bytes.
    let run = match dimensions.last() {
        Some((extent, 1, 1)) => {
            let run = *extent as usize * element;
            dimensions.pop();
            run
        }
        _ => element,
    };
    let mut index = vec![0_u64; dimensions.len()];
    let (mut source, mut target) = (0_isize, 0_isize);
    loop {
        // SAFETY: both offsets are sums of index times stride below the extents: places of elements, by the promise.
        unsafe { std::ptr::copy_nonoverlapping(from.offset(source), to.offset(target), run) };
        let mut dimension = dimensions.len();
        loop {
            let Some(next) = dimension.checked_sub(1) else { return };
            dimension = next;
            let (extent, source_stride, target_stride) = dimensions[dimension];
            let (source_step, target_step) =
                (source_stride as isize * element as isize, target_stride as isize * element as isize);
            index[dimension] += 1;
            if index[dimension] < extent {
                source += source_step;
                target += target_step;
                break;
            }
            index[dimension] = 0;
            source -= source_step * (extent as isize - 1);
            target -= target_step * (extent as isize - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dense_is_what_fills_its_memory_in_any_order_of_dimensions() {
        let dense = |extents: &[u64], strides: &[i64]| Shape::new(extents, strides, 4).unwrap().is_dense();
        assert!(dense(&[], &[]));
        assert!(dense(&[2, 3], &[3, 1]) && dense(&[2, 3], &[1, 2]));
        assert!(dense(&[2, 1, 3], &[3, 77, 1]), "one element has any stride");
        assert!(dense(&[0, 3], &[5, 9]), "none do, too");
        assert!(!dense(&[2, 3], &[4, 1]) && !dense(&[2, 3], &[0, 1]) && !dense(&[2, 3], &[-3, 1]));
        let transposed = Shape::new(&[2, 3], &[1, 2], 4).unwrap();
        assert_eq!(transposed.on_the_way(), transposed);
        assert_eq!(Shape::new(&[2, 3], &[9, 1], 4).unwrap().on_the_way().strides(), [3, 1]);
    }

    #[test]
    fn what_cannot_be_addressed_is_refused() {
        for (extents, strides) in [
            (vec![u64::MAX], vec![1]),
            (vec![1 << 40, 1 << 40], vec![1, 1]),
            (vec![0, u64::MAX, u64::MAX], vec![1, 1, 1]),
            (vec![2], vec![i64::MIN]),
            (vec![3, 3], vec![i64::MAX, i64::MAX]),
            (vec![1 << 62], vec![1]),
            (vec![2], vec![]),
            (vec![1; 17], vec![1; 17]),
        ] {
            Shape::new(&extents, &strides, 8).unwrap_err();
        }
        Shape::rows(&[u64::MAX], 1).unwrap_err();
        assert_eq!(Shape::rows(&[1; 16], 8).unwrap().count(), 1);
    }

    /// Extents, an order of dimensions for each side, and gaps for each.
    fn layouts() -> impl Strategy<Value = (Vec<u64>, Shape, Shape)> {
        let place = |extents: Vec<u64>| {
            let dimensions: Vec<usize> = (0..extents.len()).collect();
            (Just(dimensions).prop_shuffle(), prop::collection::vec(0..3_i64, extents.len())).prop_map(
                move |(order, gaps)| {
                    let mut strides = vec![0; extents.len()];
                    let mut next = 1;
                    for i in order {
                        strides[i] = next;
                        next = next * extents[i].max(1) as i64 + gaps[i];
                    }
                    Shape::new(&extents, &strides, 2).unwrap()
                },
            )
        };
        prop::collection::vec(0..5_u64, 0..5)
            .prop_flat_map(move |extents| (Just(extents.clone()), place(extents.clone()), place(extents)))
    }

    /// The places of all elements in the order of their indices.
    fn places(shape: &Shape) -> Vec<usize> {
        let mut all = vec![0_i64];
        for (extent, stride) in shape.extents().iter().zip(shape.strides()) {
            all = all.iter().flat_map(|at| (0..*extent as i64).map(move |i| at + i * stride)).collect();
        }
        if shape.count() == 0 { Vec::new() } else { all.into_iter().map(|at| at as usize).collect() }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        #[test]
        fn a_copy_puts_every_element_in_its_place_and_touches_nothing_else((extents, from, to) in layouts()) {
            let room = |shape: &Shape| places(shape).iter().max().map_or(0, |last| last + 1);
            let source: Vec<u16> = (0..room(&from) as u16).map(|i| i + 1).collect();
            let mut target = vec![0xffff_u16; room(&to)];
            // SAFETY: both have room for their farthest element.
            unsafe { copy(source.as_ptr().cast(), &from, target.as_mut_ptr().cast(), &to, 2) };
            let mut expected = vec![0xffff; target.len()];
            for (a, b) in places(&from).into_iter().zip(places(&to)) {
                expected[b] = source[a];
            }
            prop_assert_eq!(&target, &expected, "{:?}", extents);
            if from.is_alike(&to) {
                prop_assert_eq!(places(&from), places(&to));
            }
            if from.is_dense() {
                let mut all = places(&from);
                all.sort_unstable();
                prop_assert!(all.into_iter().eq(0..from.count() as usize));
            }
            prop_assert!(from.on_the_way().is_dense());
        }
    }
}
