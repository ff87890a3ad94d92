//! Whether an operation made a NaN, from the processor's own record: the bits of such a NaN differ between architectures, so
//! that a plugin which reads them could return other results on another machine. The record costs nothing while a plugin
//! computes; the few calls that need it are repeated in code that makes all NaNs the same, which every operation pays for.
//!
//! IEEE 754 has a flag that an invalid operation (0 / 0, ∞ − ∞, √−1) raises and that stays until it is lowered. A
//! conversion of a number that no integer can hold raises it too, and a comparison with a NaN may, so that a call may be
//! repeated without need.

/// The flag of this thread, lowered until this value is dropped; it is then as it was, so that nobody else notices.
pub(super) struct InvalidFlag {
    before: bool,
}

impl InvalidFlag {
    /// Lowers the flag.
    pub(super) fn lower() -> Self {
        let before = is_raised();
        set(false);
        Self { before }
    }

    /// Whether an operation of this thread has raised the flag since it was lowered.
    pub(super) fn is_raised(&self) -> bool {
        is_raised()
    }
}

impl Drop for InvalidFlag {
    fn drop(&mut self) {
        set(self.before);
    }
}

/// The bit of an invalid operation in the register of flags.
const INVALID: u32 = 1;

#[cfg(target_arch = "x86_64")]
fn is_raised() -> bool {
    register() & INVALID != 0
}

#[cfg(target_arch = "x86_64")]
fn register() -> u32 {
    let mut flags = 0u32;
    // SAFETY: it stores the register's four bytes into the variable.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut flags, options(nostack, preserves_flags)) };
    flags
}

#[cfg(target_arch = "x86_64")]
fn set(raised: bool) {
    let flags = register() & !INVALID | if raised { INVALID } else { 0 };
    // SAFETY: all other bits, rounding and masks among them, are as they were.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const flags, options(nostack, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
fn is_raised() -> bool {
    register() & u64::from(INVALID) != 0
}

#[cfg(target_arch = "aarch64")]
fn register() -> u64 {
    let flags: u64;
    // SAFETY: it reads the register of flags.
    unsafe { std::arch::asm!("mrs {}, fpsr", out(reg) flags, options(nomem, nostack, preserves_flags)) };
    flags
}

#[cfg(target_arch = "aarch64")]
fn set(raised: bool) {
    let flags = register() & !u64::from(INVALID) | if raised { u64::from(INVALID) } else { 0 };
    // SAFETY: all other flags are as they were.
    unsafe { std::arch::asm!("msr fpsr, {}", in(reg) flags, options(nomem, nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn what_makes_a_nan_raises_the_flag_and_nothing_else_does() {
        let raised = |work: &dyn Fn() -> f32| {
            let flag = InvalidFlag::lower();
            black_box(work());
            flag.is_raised()
        };
        let (zero, infinity, nan) = (black_box(0.0f32), black_box(f32::INFINITY), black_box(f32::NAN));
        assert!(raised(&|| zero / zero) && raised(&|| infinity - infinity) && raised(&|| black_box(-1.0f32).sqrt()));
        assert!(!raised(&|| 1.0 / zero) && !raised(&|| nan + 1.0) && !raised(&|| black_box(1e38f32) * 10.0));
    }

    #[test]
    fn the_flag_is_afterwards_as_it_was() {
        let outer = InvalidFlag::lower();
        let inner = InvalidFlag::lower();
        black_box(black_box(0.0f32) / black_box(0.0));
        drop(inner);
        assert!(!outer.is_raised());
        black_box(black_box(0.0f32) / black_box(0.0));
        drop(InvalidFlag::lower());
        assert!(outer.is_raised());
    }
}
