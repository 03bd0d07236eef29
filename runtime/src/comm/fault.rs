//! Faults provoked from outside, for tests: the variable `WELDMENT_FAULT=RANK:POINT:KIND[:STEP]` makes rank RANK fail at POINT
//! (`init`, `weights`, `capture`, `replay`, `teardown`; `replay` at step STEP, 1 by default) by KIND: `kill` and `stop` send the
//! process SIGKILL or SIGSTOP, `error` makes the call return an error, `sleep` keeps it from going on while it stays alive, `work` has it
//! compute for some seconds first, which is no fault.

use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// Where a fault may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the rank joins.
    Init,
    /// While weights are brought in.
    Weights,
    /// Before capture.
    Capture,
    /// Inside the step of this number, counted from 1.
    Replay(u64),
    /// When the session closes.
    Teardown,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kill,
    Stop,
    Error,
    Sleep,
    Work,
}

/// How long [`Kind::Work`] takes.
const WORK: Duration = Duration::from_secs(4);

/// The fault that the environment asks for, if this rank is the one.
#[derive(Clone, Copy, Debug)]
pub struct Fault(Option<(Point, Kind)>);

impl Fault {
    /// Reads `WELDMENT_FAULT`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the variable is not of that form.
    pub fn from_env(rank: u32) -> Result<Fault> {
        match std::env::var("WELDMENT_FAULT") {
            Ok(text) if !text.is_empty() => Fault::parse(&text, rank),
            _ => Ok(Fault(None)),
        }
    }

    fn parse(text: &str, rank: u32) -> Result<Fault> {
        let refused = || {
            Error::InvalidInput(format!(
                "WELDMENT_FAULT={text}: RANK:init|weights|capture|replay|teardown:kill|stop|error|sleep|work[:STEP] is accepted"
            ))
        };
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or_else(refused);
        let (at, point, kind) = (next()?.parse::<u32>().map_err(|_| refused())?, next()?, next()?);
        let step = parts.next().map(str::parse::<u64>).transpose().map_err(|_| refused())?.unwrap_or(1);
        let point = match point {
            "init" => Point::Init,
            "weights" => Point::Weights,
            "capture" => Point::Capture,
            "replay" => Point::Replay(step),
            "teardown" => Point::Teardown,
            _ => return Err(refused()),
        };
        let kind = match kind {
            "kill" => Kind::Kill,
            "stop" => Kind::Stop,
            "error" => Kind::Error,
            "sleep" => Kind::Sleep,
            "work" => Kind::Work,
            _ => return Err(refused()),
        };
        Ok(Fault((at == rank).then_some((point, kind))))
    }

    /// Fails if it is time to.
    ///
    /// # Errors
    /// [`Error::Driver`] where the fault is an error.
    pub fn at(&self, point: Point) -> Result<()> {
        let Some((_, kind)) = self.0.filter(|(at, _)| *at == point) else { return Ok(()) };
        let signal = |signal| {
            // A refused signal leaves the rank alive, which the test that asked for it sees.
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        };
        match kind {
            Kind::Kill => signal(rustix::process::Signal::KILL),
            Kind::Stop => signal(rustix::process::Signal::STOP),
            Kind::Error => return Err(Error::Driver("a fault that WELDMENT_FAULT asked for".into())),
            Kind::Sleep => std::thread::sleep(Duration::from_secs(3600)),
            Kind::Work => {
                let began = Instant::now();
                while began.elapsed() < WORK {
                    std::hint::spin_loop();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_of_one_rank_and_point() {
        let fault = Fault::parse("1:replay:error:3", 1).unwrap();
        assert!(fault.at(Point::Replay(2)).is_ok() && fault.at(Point::Init).is_ok());
        assert!(fault.at(Point::Replay(3)).is_err());
        assert!(Fault::parse("1:replay:error:3", 0).unwrap().at(Point::Replay(3)).is_ok());
        for text in ["", "1", "x:init:kill", "0:init:explode", "0:nowhere:kill", "0:replay:kill:x"] {
            assert!(Fault::parse(text, 0).is_err(), "{text}");
        }
    }
}
