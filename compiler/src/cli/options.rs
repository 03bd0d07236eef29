//! `weldment options`: every option, environment variable and automatic choice, from the declarations that parse them.

use super::args::Cli;
use super::put;
use crate::driver::CompileError;
use clap::CommandFactory;
use serde::Serialize;
use std::collections::BTreeMap;

/// One thing that can be chosen.
#[derive(Debug, Serialize)]
struct Line {
    /// As typed.
    name: String,
    /// option, rule, fusion, setting or environment.
    kind: &'static str,
    /// Commands that take it; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
    /// What is accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    /// Used where nothing is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    /// One line.
    doc: String,
}

/// Variables that are read, with what they do.
const ENVIRONMENT: [(&str, &str); 15] = [
    ("WELDMENT_LOG", "log filter on stderr, in RUST_LOG's syntax"),
    (
        "WELDMENT_SHAPES",
        "where a session writes a histogram of its steps' shapes when it closes; off where it is not set",
    ),
    ("WELDMENT_LAUNCH_BLOCKING", "1 runs the launches of a GPU's step one by one, so that an error names the kernel"),
    ("WELDMENT_HIP_LIBRARY", "the libamdhip64 to open, instead of the first that the loader finds"),
    ("WELDMENT_CUDA_LIBRARY", "the libcuda to open"),
    ("WELDMENT_CUBLASLT_LIBRARY", "the libcublasLt to open"),
    ("WELDMENT_RCCL_LIBRARY", "the librccl or libnccl to open, for sums over ranks that an artifact leaves to it"),
    (
        "RANK",
        "with WORLD_SIZE and LOCAL_RANK: which rank of an artifact's ranks this process is (torchrun); mpirun's and srun's \
         variables are known too. Where none is set, run, eval and bench start the ranks themselves",
    ),
    ("WELDMENT_JOB", "tells jobs on one host apart, beside MASTER_ADDR, MASTER_PORT and what the launchers set"),
    ("WELDMENT_LAUNCHER", "set for ranks that run, eval and bench start: the process that they end with"),
    (
        "WELDMENT_FAULT",
        "for tests: RANK:init|weights|capture|replay|teardown:kill|stop|error|sleep[:STEP] makes a rank fail there",
    ),
    ("WELDMENT_FIRST_EPOCH", "for tests: where the counters of collectives start, to see them wrap"),
    ("XDG_CACHE_HOME", "the cache is its folder `weldment`; ~/.cache/weldment where it is not set"),
    ("NO_COLOR", "no colours"),
    ("PATH", "where ld.lld-22 and weldmentc are looked for"),
];

fn rows() -> Vec<Line> {
    let mut options: BTreeMap<String, Line> = BTreeMap::new();
    for command in Cli::command().get_subcommands() {
        for arg in
            command.get_arguments().filter(|a| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version"))
        {
            let Some(long) = arg.get_long() else { continue };
            let values = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
            let default = arg.get_default_values().first().map(|v| v.to_string_lossy().into_owned());
            let doc = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let row = options.entry(format!("--{long}")).or_insert_with(|| Line {
                name: format!("--{long}"),
                kind: "option",
                commands: Vec::new(),
                values,
                default,
                doc,
            });
            row.commands.push(command.get_name().to_owned());
        }
    }
    let environment = ENVIRONMENT.map(|(name, doc)| Line {
        name: name.to_owned(),
        kind: "environment",
        commands: Vec::new(),
        values: Vec::new(),
        default: None,
        doc: doc.to_owned(),
    });
    let rule = |r: weldment_passes::rules::Rule| Line {
        name: r.name.to_owned(),
        kind: "rule",
        commands: Vec::new(),
        values: Vec::new(),
        default: None,
        doc: format!("[{}] {}", r.class, r.doc.lines().next().unwrap_or_default().trim()),
    };
    let fusion = |name: &&str| Line {
        name: (*name).to_owned(),
        kind: "fusion",
        commands: Vec::new(),
        values: Vec::new(),
        default: None,
        doc: "for --disable, --require and the report's coverage".to_owned(),
    };
    let setting = |choice: &weldment_codegen::choices::Choice| Line {
        name: choice.name.to_owned(),
        kind: "setting",
        commands: Vec::new(),
        values: choice.accepted.list(),
        default: Some(choice.default.to_owned()),
        doc: choice.doc.to_owned(),
    };
    let settings = weldment_codegen::choices::Choices::TABLE.iter().map(setting);
    let rules = weldment_passes::rules::all().into_iter().map(rule);
    let fusions = weldment_passes::rules::GROUPS.iter().map(fusion);
    options.into_values().chain(settings).chain(fusions).chain(rules).chain(environment).collect()
}

/// Prints the table.
pub fn list(json: bool) -> Result<(), CompileError> {
    let rows = rows();
    if json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| CompileError::option("--json", e.to_string()))?;
        return put(&(text + "\n"));
    }
    let mut text = String::new();
    for row in rows {
        let default = row.default.map(|d| format!(" [default: {d}]")).unwrap_or_default();
        let values = if row.values.is_empty() { String::new() } else { format!(" [{}]", row.values.join(", ")) };
        text += &format!("{:12} {:30} {}{values}{default}\n", row.kind, row.name, row.doc);
    }
    put(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of variables in the sources below `folder`, tests left out.
    fn variables(folder: &std::path::Path, found: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                variables(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let quoted = code.split("\"WELDMENT_").skip(1).filter_map(|rest| rest.split_once('"'));
                let named = quoted.filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
                found.extend(named.map(|(name, _)| format!("WELDMENT_{name}")));
            }
        }
    }

    #[test]
    fn every_variable_that_is_read_is_listed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut found = std::collections::BTreeSet::new();
        for folder in [
            "runtime/src",
            "runtime/hip-runtime-sys/src",
            "runtime/rccl-sys/src",
            "compiler/src",
            "codegen/src",
            "passes/src",
            "ir/src",
        ] {
            variables(&root.join(folder), &mut found);
        }
        assert!(found.contains("WELDMENT_LOG"), "{found:?}");
        for name in &found {
            assert!(ENVIRONMENT.iter().any(|(listed, _)| listed == name), "{name}");
        }
    }

    #[test]
    fn the_table_holds_what_the_parser_takes() {
        let rows = rows();
        let row = |name: &str| rows.iter().find(|r| r.name == name).unwrap();
        assert_eq!(row("--kv-block").default.as_deref(), Some("16"));
        assert_eq!(row("--fp-policy").values, ["bitwise", "reassoc", "rounding", "approx"]);
        assert!(row("--tokens").commands.contains(&"eval".to_owned()));
        assert!(!rows.iter().any(|r| r.name == "--interpret"));
        assert_eq!(row("add_rms_norm").kind, "fusion");
        assert!(rows.iter().all(|r| !r.doc.is_empty()), "{rows:?}");
    }
}
