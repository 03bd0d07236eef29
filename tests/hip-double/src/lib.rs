//! A stand-in for libamdhip64, to run Weldment's HIP driver where there is no AMD GPU.
//!
//! The shared library exports HIP's functions by HIP's names. It records each call, checks the protocol (handles used after
//! their destruction, work that a capture forbids, launch limits, addresses outside allocations), accounts for everything that is
//! allocated, and can make any one call fail. Device memory is an address range that the process cannot touch, with its bytes
//! elsewhere, so a host access to it faults. Streams are lazy: what is enqueued runs when somebody waits for it, so a pinned slot
//! that is overwritten too early is seen.
//!
//! Modules are the code objects of the compiler, whose kernels are checked and do nothing, or small texts with kernels that
//! compute (see `module`).
//!
//! [`Double`] is the other side: a test opens the library by it, sets what shall go wrong and reads what happened. The library is
//! one per process, and so is its state.

mod client;
mod control;
mod exports;
mod kernels;
mod memory;
mod module;
mod shared;
mod state;
mod stream;

pub use client::{Double, locate};
pub use module::{accepts, text_image};
