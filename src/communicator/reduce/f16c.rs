//! binary16 on x86-64, whose own instructions convert it: about five times as fast as the integers of [`F16`].
//!
//! The same bits as [`F16`], which also takes the elements too few for a register.

use std::arch::x86_64::*;

use super::codec::{Codec, F16};

/// [`F16`] with F16C, or with AVX-512 where `WIDE`. Only for paths that have it.
pub(super) struct F16c<const WIDE: bool>;

impl<const WIDE: bool> Codec for F16c<WIDE> {
    type Raw = u16;
    type Acc = f32;

    #[inline(always)]
    fn decode(raw: u16) -> f32 {
        F16::decode(raw)
    }

    #[inline(always)]
    fn encode(acc: f32) -> u16 {
        F16::encode(acc)
    }

    #[inline(always)]
    fn decode_all<const N: usize>(raw: [u16; N]) -> [f32; N] {
        let mut all = [0.0; N];
        let mut i = 0;
        while WIDE && i + 16 <= N {
            // SAFETY: the path has AVX-512; sixteen elements follow `i` in both arrays.
            unsafe {
                let halves = raw.as_ptr().add(i).cast::<__m256i>().read_unaligned();
                all.as_mut_ptr().add(i).cast::<__m512>().write_unaligned(_mm512_cvtph_ps(halves));
            }
            i += 16;
        }
        while i + 8 <= N {
            // SAFETY: the path has F16C; eight elements follow `i` in both arrays.
            unsafe {
                let halves = raw.as_ptr().add(i).cast::<__m128i>().read_unaligned();
                all.as_mut_ptr().add(i).cast::<__m256>().write_unaligned(_mm256_cvtph_ps(halves));
            }
            i += 8;
        }
        while i < N {
            all[i] = F16::decode(raw[i]);
            i += 1;
        }
        all
    }

    #[inline(always)]
    fn encode_all<const N: usize>(mut acc: [f32; N]) -> [u16; N] {
        let mut all = [0; N];
        let mut i = 0;
        for value in &mut acc {
            // The instruction keeps the payload.
            *value = if value.is_nan() { f32::NAN } else { *value };
        }
        while WIDE && i + 16 <= N {
            // SAFETY: as in `decode_all`.
            unsafe {
                let values = acc.as_ptr().add(i).cast::<__m512>().read_unaligned();
                let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
                all.as_mut_ptr().add(i).cast::<__m256i>().write_unaligned(halves);
            }
            i += 16;
        }
        while i + 8 <= N {
            // SAFETY: as in `decode_all`.
            unsafe {
                let values = acc.as_ptr().add(i).cast::<__m256>().read_unaligned();
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
                all.as_mut_ptr().add(i).cast::<__m128i>().write_unaligned(halves);
            }
            i += 8;
        }
        while i < N {
            all[i] = F16::encode(acc[i]);
            i += 1;
        }
        all
    }
}
