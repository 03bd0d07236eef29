//! Random graphs, optimised and compiled for the host many to a module, beside the interpreter on the graph as it was.

pub mod batch;
pub mod bounded;
pub mod case;
pub mod minimise;
pub mod run;
pub mod sabotage;
mod values;
