//! The Weldment compiler: front ends, model definitions and the driver that takes a model to an artifact.

pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod driver;
pub mod frontend;
pub mod models;
