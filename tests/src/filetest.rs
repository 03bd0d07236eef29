//! Filetests: a `.wir` file that says what to do with it and what comes out.
//!
//! ```text
//! ; test: interpret T=2 seed=1
//! ; bind: x = 1 2.5
//! graph @g { ... }
//! ; CHECK
//! ; y: f32[2] = 2 5
//! ```
//! `;` starts a comment of text IR, so the whole file is text IR too.

use crate::stages;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "; test:";
const CHECK: &str = "; CHECK";

/// What follows the stage's name, and the `; bind:` lines.
#[derive(Debug, Default)]
pub struct Args {
    /// `key=value` words; a word without `=` has an empty value.
    pub options: BTreeMap<String, String>,
    /// Name and numbers of each `; bind: name = numbers` line.
    pub binds: Vec<(String, Vec<f64>)>,
}

impl Args {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// The names of a `key=name,name`; none if it is not given.
    pub fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        self.get(key).unwrap_or("").split(',').filter(|name| !name.is_empty())
    }

    /// The value of a key as a number, or `default` if it is not given.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        self.get(key).map_or(Ok(default), |v| v.parse().map_err(|_| format!("option {key}={v} is not a number")))
    }

    /// Symbols' sizes: keys that start with a capital letter, such as `T=4`.
    ///
    /// # Errors
    /// If one is not a number.
    pub fn dims(&self) -> Result<BTreeMap<String, u64>, String> {
        let keys = self.options.keys().filter(|k| k.starts_with(|c: char| c.is_ascii_uppercase()));
        keys.map(|k| Ok((k.clone(), self.number(k, 0)?))).collect()
    }
}

/// A filetest, split into its parts.
#[derive(Debug)]
pub struct FileTest {
    /// Name after `; test:`.
    pub stage: String,
    /// The rest of that line.
    pub args: Args,
    /// Everything before `; CHECK`.
    pub text: String,
    /// Expected output, without the comment marks.
    pub expected: String,
}

impl FileTest {
    /// Splits a file's text.
    ///
    /// # Errors
    /// If the head line is missing or an option is malformed.
    pub fn parse(file: &str) -> Result<FileTest, String> {
        let head = file.lines().next().and_then(|l| l.strip_prefix(HEAD));
        let mut words = head.ok_or(format!("the first line must be `{HEAD} STAGE [key=value]...`"))?.split_whitespace();
        let stage = words.next().ok_or("no stage is named")?.to_owned();
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            (key.to_owned(), value.to_owned())
        };
        let mut args = Args { options: words.map(pair).collect(), binds: Vec::new() };
        let (mut text, mut expected, mut checking) = (String::new(), String::new(), false);
        for line in file.lines() {
            if line == CHECK {
                checking = true;
            } else if checking {
                let line = line.strip_prefix(';').ok_or("a line after `; CHECK` that does not start with `;`")?;
                expected += line.strip_prefix(' ').unwrap_or(line);
                expected.push('\n');
            } else {
                if let Some(bind) = line.strip_prefix("; bind:") {
                    args.binds.push(parse_bind(bind)?);
                }
                text += line;
                text.push('\n');
            }
        }
        Ok(FileTest { stage, args, text, expected })
    }

    /// The file with `output` as its expectation.
    pub fn blessed(&self, output: &str) -> String {
        let mut file = format!("{}{CHECK}\n", self.text);
        for line in output.lines() {
            file += if line.is_empty() { ";" } else { "; " };
            file += line;
            file.push('\n');
        }
        file
    }
}

fn parse_bind(line: &str) -> Result<(String, Vec<f64>), String> {
    let (name, numbers) = line.split_once('=').ok_or("`; bind: NAME = NUMBERS` is expected")?;
    let numbers = numbers.split_whitespace().map(|n| n.parse().map_err(|_| format!("bind: {n} is not a number")));
    Ok((name.trim().to_owned(), numbers.collect::<Result<_, _>>()?))
}

/// Runs one file, or rewrites its expectation.
///
/// # Errors
/// A readable difference, or what is wrong with the file.
pub fn run(path: &Path, bless: bool) -> Result<(), String> {
    let file = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let test = FileTest::parse(&file)?;
    let folder = path.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    if folder != Some(test.stage.as_str()) {
        return Err(format!("stage {} in folder {folder:?}; they must be the same", test.stage));
    }
    let mut output = stages::run(&test)?;
    if !output.is_empty() && !output.ends_with('\n') {
        output.push('\n');
    }
    if output == test.expected {
        return Ok(());
    }
    if bless {
        return fs::write(path, test.blessed(&output)).map_err(|e| e.to_string());
    }
    Err(difference(&test.expected, &output))
}

fn difference(expected: &str, found: &str) -> String {
    let (e, f): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let at = e.iter().zip(&f).take_while(|(a, b)| a == b).count();
    let line = |lines: &[&str]| lines.get(at).map_or("nothing".to_owned(), |l| format!("`{l}`"));
    format!("line {} of the output: expected {}, found {}\n{found}", at + 1, line(&e), line(&f))
}

/// Every `.wir` file under `folder`, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub fn collect(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(collect(&path)?);
        } else if path.extension().is_some_and(|e| e == "wir") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
