//! What Weldment's tests share: the filetest harness and running kernels beside the interpreter. See tests/README.md.

pub mod cases;
pub mod draft;
pub mod emulate;
pub mod execute;
pub mod filetest;
pub mod fuzz;
mod host;
pub mod programs;
pub mod protocol;
pub mod ranks;
pub mod stages;
pub mod tile_interpreter;
