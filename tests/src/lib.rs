//! Weldment tests.
