//! What Weldment's tests share: the filetest harness. See tests/README.md.

pub mod filetest;
pub mod stages;

pub mod execute;
