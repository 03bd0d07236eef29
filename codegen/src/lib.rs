//! Kernels and code: the tile IR, one file per kernel family, the LLVM lowering, kernel selection and linking.

pub mod llvm;
pub mod tile;
