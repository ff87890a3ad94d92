//! The functions of shim.cpp; null is success, anything else a message for [`check`].

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, Result};

#[repr(C)]
pub(crate) struct CGenerator {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct CAutocastState {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct CStore {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct CGroup {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct CProfile {
    _opaque: [u8; 0],
}

/// Receives an operator of a profile: the caller's data, name, outer and nested calls, seconds, FLOP.
pub(crate) type Visit = unsafe extern "C" fn(*mut c_void, *const c_char, u64, u64, f64, f64);

pub(crate) type Message = *mut c_char;

unsafe extern "C" {
    fn ext_free_message(message: Message);
    pub(crate) fn ext_config(out: *mut Message) -> Message;
    pub(crate) fn ext_grad_enabled() -> bool;
    pub(crate) fn ext_library_path(out: *mut Message) -> Message;
    pub(crate) fn ext_keep_memory();
    pub(crate) fn ext_group_norm_silu(
        x: *const C_tensor,
        groups: i64,
        weight: *const C_tensor,
        bias: *const C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_leaky_relu(x: *mut C_tensor, slope: f64, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn ext_generator_new(seed: u64, out: *mut *mut CGenerator) -> Message;
    pub(crate) fn ext_generator_free(generator: *mut CGenerator);
    pub(crate) fn ext_generator_normal(
        generator: *mut CGenerator,
        shape: *const i64,
        dims: usize,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_generator_uniform(
        generator: *mut CGenerator,
        shape: *const i64,
        dims: usize,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_generator_permutation(generator: *mut CGenerator, n: i64, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn ext_generator_integers(
        generator: *mut CGenerator,
        low: i64,
        high: i64,
        shape: *const i64,
        dims: usize,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_generator_state(generator: *const CGenerator, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn ext_generator_set_state(generator: *mut CGenerator, state: *const C_tensor) -> Message;
    pub(crate) fn ext_adamw_step(
        parameters: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
    ) -> Message;
    pub(crate) fn ext_lerp(
        tensors: *const *const C_tensor,
        targets: *const *const C_tensor,
        count: usize,
        weight: f64,
    ) -> Message;
    pub(crate) fn ext_clear_gradient(tensor: *const C_tensor) -> Message;
    pub(crate) fn ext_clip_grad_norm(
        parameters: *const *const C_tensor,
        count: usize,
        max_norm: f64,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_add_gradients(parameters: *const *const C_tensor, count: usize, sum: *mut C_tensor) -> Message;
    pub(crate) fn ext_set_gradients(parameters: *const *const C_tensor, count: usize, sum: *const C_tensor) -> Message;
    pub(crate) fn ext_autocast_enter(device_type: i8, dtype: i8, out: *mut *mut CAutocastState) -> Message;
    pub(crate) fn ext_autocast_leave(state: *mut CAutocastState) -> Message;
    pub(crate) fn ext_store_new(
        host: *const c_char,
        port: u16,
        serves: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut CStore,
    ) -> Message;
    pub(crate) fn ext_store_free(store: *mut CStore);
    pub(crate) fn ext_store_port(store: *const CStore) -> u16;
    pub(crate) fn ext_store_set(store: *mut CStore, key: *const c_char, value: *const u8, length: usize) -> Message;
    pub(crate) fn ext_store_get(store: *mut CStore, key: *const c_char, out: *mut Message) -> Message;
    pub(crate) fn ext_group_new(
        store: *mut CStore,
        host: *const c_char,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        out: *mut *mut CGroup,
    ) -> Message;
    pub(crate) fn ext_group_use_nccl(group: *mut CGroup, store: *mut CStore, device: i8, timeout_ms: i64) -> Message;
    pub(crate) fn ext_group_has_nccl(group: *const CGroup) -> bool;
    pub(crate) fn ext_group_free(group: *mut CGroup);
    pub(crate) fn ext_group_exchange_rows(
        group: *mut CGroup,
        tensor: *const C_tensor,
        sent: *const i64,
        received: *const i64,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_group_clone(group: *const CGroup) -> *mut CGroup;
    pub(crate) fn ext_group_is_broken(group: *const CGroup) -> bool;
    pub(crate) fn ext_group_differentiable_sum(
        group: *const CGroup,
        tensor: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_group_sum(group: *mut CGroup, tensor: *mut C_tensor) -> Message;
    pub(crate) fn ext_group_gather(group: *mut CGroup, tensor: *const C_tensor, out: *mut *mut C_tensor) -> Message;
    pub(crate) fn ext_group_gather_to_first(
        group: *mut CGroup,
        tensor: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Message;
    pub(crate) fn ext_group_broadcast(group: *mut CGroup, tensor: *mut C_tensor) -> Message;
    pub(crate) fn ext_profile_start(out: *mut *mut CProfile) -> Message;
    pub(crate) fn ext_profile_stop(profile: *mut CProfile, visit: Option<Visit>, data: *mut c_void) -> Message;
    pub(crate) fn ext_set_numerics(tf32: bool, benchmark: bool, deterministic: bool) -> Message;
    pub(crate) fn ext_numerics(tf32: *mut bool, benchmark: *mut bool, deterministic: *mut bool) -> Message;
    pub(crate) fn ext_cuda_peak(device: i8, out: *mut u64) -> Message;
    pub(crate) fn ext_channels_last(tensor: *const C_tensor, out: *mut *mut C_tensor) -> Message;
}

/// Copies a C string of the shim and frees it; returns none for null.
///
/// # Safety
/// `message` is null or a string that a function of the shim has just returned.
unsafe fn take(message: Message) -> Option<String> {
    if message.is_null() {
        return None;
    }
    // SAFETY: by this function's contract it is a NUL-terminated string, read before it is freed, once.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        ext_free_message(message);
        Some(text)
    }
}

/// Converts the return value of a function of the shim to a result.
///
/// # Safety
/// `message` is what a function of the shim has just returned.
pub(crate) unsafe fn check(message: Message) -> Result<()> {
    // SAFETY: by the same contract.
    match unsafe { take(message) } {
        None => Ok(()),
        Some(text) => Err(Error::from_libtorch(&text)),
    }
}

/// Calls a function of the shim that returns a tensor.
pub(crate) fn tensor(call: impl FnOnce(*mut *mut C_tensor) -> Message) -> Result<Tensor> {
    let mut out: *mut C_tensor = null_mut();
    // SAFETY: `call` returns what the shim returned; on success `out` is an at::Tensor that we now own.
    unsafe {
        check(call(&mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Calls a function of the shim that returns a string, or null.
pub(crate) fn string(call: impl FnOnce(*mut Message) -> Message) -> Result<Option<String>> {
    let mut out: Message = null_mut();
    // SAFETY: `call` returns what the shim returned; on success `out` is null or a string that we now own.
    unsafe {
        check(call(&mut out))?;
        Ok(take(out))
    }
}

/// Returns the pointers of tensors, valid as long as the tensors are.
pub(crate) fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}
