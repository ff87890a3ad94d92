//! An allocator that refuses sizes that no small file should ask for, so that such a request is a fault.

use std::alloc::{GlobalAlloc, Layout, System};

/// Maximum size of an allocation in bytes; a reader that asks for more aborts, unless it handles the failure.
pub const MAX_ALLOCATION: usize = 1 << 30;

struct Limited;

#[global_allocator]
static LIMITED: Limited = Limited;

// SAFETY: every call is passed on to the system's allocator, or returns a null pointer, which means failure.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees a valid `layout`.
        if layout.size() > MAX_ALLOCATION { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: all pointers come from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        if layout.size() > MAX_ALLOCATION { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; a null pointer leaves the old allocation as it was.
        if size > MAX_ALLOCATION { std::ptr::null_mut() } else { unsafe { System.realloc(pointer, layout, size) } }
    }
}
