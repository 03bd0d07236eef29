//! Defects of HIP releases that matter to a program that captures once and replays, for `doctor`. Versions are those that
//! `hipRuntimeGetVersion` reports: major, minor, build.

/// A version of the HIP runtime.
pub type Version = (u32, u32, u32);

/// A defect of some releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defect {
    /// Short name.
    pub name: &'static str,
    /// First release known to have it.
    pub since: Version,
    /// First release without it; `None` if there is none yet.
    pub fixed: Option<Version>,
    /// Processors it was seen on; empty means all.
    pub processors: &'static [&'static str],
    /// What goes wrong.
    pub what: &'static str,
    /// What Weldment does about it, or what the user can.
    pub answer: &'static str,
    /// Where it is described.
    pub source: &'static str,
}

/// All that are known, the most severe first.
pub const DEFECTS: &[Defect] = &[
    Defect {
        name: "replay-corruption",
        since: (7, 2, 0),
        fixed: Some((7, 13, 0)),
        processors: &["gfx942"],
        what: "replayed graphs were reported to give wrong results in about one process of five (ROCm 7.2.0 to 7.2.3)",
        answer: "use ROCm 7.1 or 7.13 and later; `weldment-rt verify` and repeated runs of one prompt show it",
        source: "https://github.com/ROCm/clr/issues/279",
    },
    Defect {
        name: "kernarg-exhaustion-crash",
        since: (6, 4, 0),
        fixed: None,
        processors: &[],
        what: "the runtime writes through a null pointer when device memory runs out while a graph takes space for its arguments",
        answer: "leave device memory free when a session is opened; replays take none",
        source: "https://github.com/ROCm/rocm-systems/issues/10021",
    },
    Defect {
        name: "event-wait-spoils-capture",
        since: (0, 0, 0),
        // ROCm 7.2.1; 7.2.0 is build 26015.
        fixed: Some((7, 2, 53211)),
        processors: &[],
        what: "hipEventQuery and hipEventSynchronize in any thread invalidate captures of all threads",
        answer: "Weldment's own threads wait for each other's captures; open sessions while nothing else in the process waits",
        source: "https://github.com/ROCm/rocm-systems/pull/3176",
    },
    Defect {
        name: "capture-errors-unreported",
        since: (0, 0, 0),
        fixed: Some((7, 14, 0)),
        processors: &[],
        what: "calls that a capture forbids are not always reported as errors",
        answer: "none is made: everything is allocated before a capture begins",
        source: "https://github.com/ROCm/pytorch/pull/3323",
    },
    Defect {
        name: "graph-update-quadratic",
        since: (0, 0, 0),
        fixed: None,
        processors: &[],
        what: "hipGraphExecUpdate takes time quadratic in the number of nodes",
        answer: "never called: what changes between steps is read from device memory",
        source: "https://github.com/ROCm/rocm-systems/issues/11070",
    },
    Defect {
        name: "kernarg-pool",
        since: (0, 0, 0),
        fixed: None,
        processors: &[],
        what: "each update of an executable graph takes argument space that is only given back when it is destroyed",
        answer: "never updated: a graph is captured once and keeps its arguments",
        source: "https://github.com/ROCm/rocm-systems/issues/10713",
    },
    Defect {
        name: "module-unload-leak",
        since: (0, 0, 0),
        // ROCm 5.6.1, whose number is that of 5.6 but for the build.
        fixed: Some((5, 7, 0)),
        processors: &[],
        what: "hipModuleUnload does not give all memory back (fixed in ROCm 5.6.1)",
        answer: "open an artifact once and keep the session",
        source: "https://github.com/ROCm/legacy-rocm-build/releases/tag/rocm-5.6.1",
    },
    Defect {
        name: "captured-arguments-shared",
        since: (5, 2, 0),
        fixed: Some((5, 2, 21153)),
        processors: &[],
        what: "a kernel that is captured twice keeps the arguments of its second launch for both",
        answer: "use another release: steps would give wrong results",
        source: "https://github.com/ROCm/legacy-rocm-build/releases/tag/rocm-5.2.3",
    },
];

/// The defects of `version` on a device of `processor` (`gfx942`); of every device if that is `None`.
pub fn known(version: Version, processor: Option<&str>) -> impl Iterator<Item = &'static Defect> {
    DEFECTS.iter().filter(move |defect| {
        let here = |p: &str| defect.processors.is_empty() || defect.processors.contains(&p);
        defect.since <= version && defect.fixed.is_none_or(|fixed| version < fixed) && processor.is_none_or(here)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_their_defects() {
        let names = |version, processor| known(version, processor).map(|d| d.name).collect::<Vec<_>>();
        assert!(names((7, 2, 26015), Some("gfx942")).contains(&"event-wait-spoils-capture"));
        assert!(!names((7, 2, 53211), Some("gfx942")).contains(&"event-wait-spoils-capture"));
        assert!(names((7, 2, 53211), Some("gfx942")).contains(&"replay-corruption"));
        assert!(!names((7, 2, 53211), Some("gfx950")).contains(&"replay-corruption"));
        assert!(names((7, 2, 53211), None).contains(&"replay-corruption"));
        assert!(!names((7, 1, 1), None).contains(&"replay-corruption"));
        assert!(names((5, 2, 21151), None).contains(&"captured-arguments-shared"));
        assert!(!names((5, 2, 21153), None).contains(&"captured-arguments-shared"));
        for defect in DEFECTS {
            assert!(defect.source.starts_with("https://"), "{}", defect.name);
            assert!(defect.fixed.is_none_or(|fixed| defect.since < fixed), "{}", defect.name);
            assert_eq!(DEFECTS.iter().filter(|d| d.name == defect.name).count(), 1, "{}", defect.name);
        }
    }
}
