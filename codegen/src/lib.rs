//! Weldment codegen.
