//! What a kernel family says of itself: which ops it runs, what it asks of a request, in which ways it can run one, and what that costs.

use crate::choices::{Accepted, Choices};
use crate::request::{Built, Request};
use weldment_ir::OpKind;
use weldment_passes::target::Refusal;

/// How a family addresses an operand or a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strides {
    /// Rows at one stride, elements contiguous.
    Rows,
    /// Any strides, elements contiguous.
    Contiguous,
    /// Elements at one stride.
    Points,
    /// Any strides.
    Any,
}

/// Which results may take the bytes of operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// None: elements are read again after others were written.
    Never,
    /// Any operand of the result's shape: each thread stores what it alone loaded, after it did.
    Elements,
    /// Result i those of operand i, weights excepted: a row is written by the program that read it, behind its reads.
    Rows,
}

/// How the kernels of a family lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Addressing {
    /// Of each operand; the last entry repeats.
    pub operands: &'static [Strides],
    /// Of all results.
    pub results: Strides,
    /// Results in the bytes of operands.
    pub shares: Sharing,
}

/// A kernel family. Every family of [`crate::kernels::FAMILIES`] states its preconditions once, in `check`: guards of rules, near misses and
/// selection all ask there.
pub trait Family: Sync {
    /// Does it run this op?
    fn runs(&self, kind: OpKind) -> bool;

    /// How its kernels for this op address memory.
    fn addressing(&self, kind: OpKind) -> Addressing;

    /// Does it take the request?
    ///
    /// # Errors
    /// The precondition that fails.
    fn check(&self, request: &Request<'_>) -> Result<(), Refusal>;

    /// Choices ([`Choices::OF_KERNELS`]) that change what it builds.
    fn heeds(&self) -> &'static [&'static str] {
        &[]
    }

    /// Ways to run the request: the automatic one, then those that differ from it in one choice that the user left open.
    fn configs(&self, request: &Request<'_>) -> Vec<Choices> {
        let mut ways = vec![request.choices];
        for key in self.heeds() {
            let Some(choice) = Choices::TABLE.iter().find(|c| c.name == *key) else { continue };
            let Accepted::OneOf(values) = choice.accepted else { continue };
            for value in values {
                let mut fixed = Choices::default();
                // The table's own values are taken, and what the user fixed stays.
                let way = fixed.set(key, &value.to_string()).map(|()| request.choices.over(fixed));
                ways.extend(way.ok().filter(|way| *way != request.choices));
            }
        }
        ways
    }

    /// The kernel of a request with its choices.
    ///
    /// # Errors
    /// The precondition that fails.
    fn build(&self, request: &Request<'_>) -> Result<Built, Refusal>;

    /// Nanoseconds of one launch with the symbols at `dims`.
    fn cost(&self, request: &Request<'_>, dims: &dyn Fn(&str) -> u64) -> f64 {
        crate::cost::nanoseconds(request, dims)
    }

    /// Arena bytes that the kernel needs beside its results.
    fn scratch(&self, request: &Request<'_>) -> u64 {
        let _ = request;
        0
    }
}
