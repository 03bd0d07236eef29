//! Which rank this process is, by the conventions of torchrun, mpirun and srun.

use crate::artifact::limits::MAX_WORLD;
use crate::error::{Error, Result};

/// A rank of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Number of this rank, `0..world`.
    pub rank: u32,
    /// Ranks of the job.
    pub world: u32,
    /// Number of this rank among those of this host; picks the GPU.
    pub local_rank: u32,
    /// Ranks of this host.
    pub local_world: u32,
    /// What the ranks of one job have in common and no other job on this host has.
    pub job: String,
}

/// Variables of one launcher: rank, world, local rank, local world.
const LAUNCHERS: [[&str; 4]; 4] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"],
];

/// What names a job: all that are set, together.
const JOB: [&str; 10] = [
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "WELDMENT_JOB",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "PMI_JOBID",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
];

impl Ranks {
    /// Rank `rank` of `world` ranks of this host that all call the job `job`.
    pub fn local(rank: u32, world: u32, job: impl Into<String>) -> Ranks {
        Ranks { rank, world, local_rank: rank, local_world: world, job: job.into() }
    }

    /// What the environment says: `RANK`, `WORLD_SIZE` and `LOCAL_RANK` (torchrun), else the variables of Open MPI, of MPICH and
    /// Intel MPI (`PMI_*`), or of srun; `None` if none of them is set.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the variable that is no number or out of range, or that is missing beside the others.
    pub fn from_env() -> Result<Option<Ranks>> {
        Ranks::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The rank that this process is of the `world` ranks of an artifact, by the environment; the only one where `world` is 1.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the environment names none, or another number of ranks, saying how to launch them.
    pub fn for_world(world: u32) -> Result<Ranks> {
        if world == 1 {
            return Ok(Ranks::local(0, 1, ""));
        }
        match Ranks::from_env()? {
            Some(ranks) if ranks.world == world => Ok(ranks),
            Some(ranks) => Err(wrong_world(world, ranks.world)),
            None => Err(wrong_world(world, 0)),
        }
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Ranks>> {
        let number = |name: &str| -> Result<Option<u32>> {
            let parse = |text: String| {
                let refused = || Error::InvalidInput(format!("the variable {name} is {text:?}, not a number"));
                text.trim().parse::<u32>().map_err(|_| refused())
            };
            get(name).map(parse).transpose()
        };
        for [rank_name, world_name, local_name, local_world_name] in LAUNCHERS {
            // A batch script of Slurm has its variables without being a task of a step.
            if rank_name == "SLURM_PROCID" && get("SLURM_STEP_ID").is_none() {
                continue;
            }
            let Some(rank) = number(rank_name)? else { continue };
            let Some(world) = number(world_name)? else {
                return Err(Error::InvalidInput(format!("{rank_name} is set but {world_name} is not")));
            };
            let local_rank = number(local_name)?.unwrap_or(rank);
            let local_world = number(local_world_name)?.unwrap_or(world);
            let job: Vec<String> = JOB.iter().filter_map(|name| Some(format!("{name}={}", get(name)?))).collect();
            let ranks = Ranks { rank, world, local_rank, local_world, job: job.join(" ") };
            ranks.check()?;
            return Ok(Some(ranks));
        }
        Ok(None)
    }

    /// Checks that the numbers are of one host's job.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] saying what is accepted, [`Error::Unsupported`] for ranks of several hosts.
    pub fn check(&self) -> Result<()> {
        let Ranks { rank, world, local_rank, local_world, .. } = self;
        if *world == 0 || *world > MAX_WORLD || rank >= world {
            return Err(Error::InvalidInput(format!(
                "rank {rank} of {world} ranks; 0..world of 1 to {MAX_WORLD} ranks is accepted"
            )));
        }
        if local_world < world {
            return Err(Error::Unsupported(format!(
                "{world} ranks of which {local_world} are on this host: the ranks of one job must share a host"
            )));
        }
        if local_rank >= local_world {
            return Err(Error::InvalidInput(format!("local rank {local_rank} of {local_world} ranks on this host")));
        }
        Ok(())
    }
}

/// The error of an artifact for `world` ranks in a job of `found`, or of none.
pub(super) fn wrong_world(world: u32, found: u32) -> Error {
    let job = match found {
        0 => "this process is none of a job's".to_owned(),
        n => format!("this job has {n}"),
    };
    Error::InvalidInput(format!(
        "the artifact is for {world} ranks, {job}: weldment run, eval and bench start them themselves; otherwise: torchrun \
         --nproc-per-node {world}, mpirun -n {world} or srun -n {world}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Ranks>> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Ranks::from_variables(&get)
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(read(&[]).unwrap(), None);
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_PORT", "29500")];
        let ranks = read(&torchrun).unwrap().unwrap();
        assert_eq!(ranks, Ranks::local(1, 4, "MASTER_PORT=29500"));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
            ("PMIX_NAMESPACE", "job7"),
        ];
        let ranks = read(&mpi).unwrap().unwrap();
        assert_eq!((ranks.rank, ranks.world, ranks.local_rank, ranks.job.as_str()), (2, 8, 2, "PMIX_NAMESPACE=job7"));
        assert_eq!(read(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).unwrap().unwrap().world, 2);
        let slurm = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_LOCALID", "1")];
        assert_eq!(read(&slurm).unwrap(), None);
        let step: Vec<_> = slurm.into_iter().chain([("SLURM_STEP_ID", "0")]).collect();
        assert_eq!(read(&step).unwrap().unwrap().rank, 1);
    }

    #[test]
    fn wrong_variables_are_named() {
        for (variables, expected) in [
            (&[("RANK", "x"), ("WORLD_SIZE", "2")][..], "RANK"),
            (&[("RANK", "0")], "WORLD_SIZE"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "rank 2 of 2"),
            (&[("RANK", "0"), ("WORLD_SIZE", "100")], "1 to 64"),
            (&[("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")], "share a host"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "5")], "local rank 5"),
        ] {
            let error = read(variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
