//! Weldment passes.
