//! An allocator that refuses what no small file should ask for, so that the request is a fault and not a slow machine.

use std::alloc::{GlobalAlloc, Layout, System};

/// The largest allocation; a reader that asks for more at once aborts, unless it asked in a way that may fail.
pub const MOST_BYTES: usize = 1 << 30;

struct Limited;

#[global_allocator]
static LIMITED: Limited = Limited;

// SAFETY: what is not refused goes to the system's allocator as it came, and a null pointer is how refusal is said.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is handed on.
        if layout.size() > MOST_BYTES { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: all pointers come from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        if layout.size() > MOST_BYTES { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; a null pointer leaves the old allocation as it was.
        if size > MOST_BYTES { std::ptr::null_mut() } else { unsafe { System.realloc(pointer, layout, size) } }
    }
}
