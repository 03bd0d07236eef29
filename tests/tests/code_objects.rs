//! What AMD's loader asks of a code object: every object that is linked keeps each rule, and one that breaks a rule is refused by the
//! driver, before a library sees it that would crash, and by the double of that library.

mod tiny_llama;

use weldment_artifact::code_object::check;
use weldment_codegen::target::GpuArch;
use weldment_tests::cases::cases;
use weldment_tests::emulate::object;

fn number(file: &[u8], at: usize, bytes: usize) -> usize {
    file[at..at + bytes].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b))
}

/// The header of the first section or segment for which `is` holds: (where it is, its bytes' offset).
fn header(file: &[u8], [table, entry, count]: [usize; 3], is: impl Fn(usize) -> bool) -> usize {
    let (at, entry, count) = (number(file, table, 8), number(file, entry, 2), number(file, count, 2));
    (0..count).map(|i| at + i * entry).find(|at| is(*at)).expect("such a header")
}

fn section(file: &[u8], kind: usize) -> usize {
    header(file, [40, 58, 60], |at| number(file, at + 4, 4) == kind)
}

fn segment(file: &[u8], kind: usize) -> usize {
    header(file, [32, 54, 56], |at| number(file, at, 4) == kind)
}

fn find(file: &[u8], text: &[u8]) -> usize {
    file.windows(text.len()).rposition(|w| w == text).expect("the text")
}

/// The symbol of this name in `.symtab`.
fn symbol(file: &[u8], name: &str) -> usize {
    let table = section(file, 2);
    let sections = number(file, 40, 8);
    let strings = number(file, sections + number(file, table + 40, 4) * 64 + 24, 8);
    let (start, bytes) = (number(file, table + 24, 8), number(file, table + 32, 8));
    let wanted = [name.as_bytes(), b"\0"].concat();
    let is = |at: &usize| file[strings + number(file, *at, 4)..].starts_with(&wanted);
    (start..start + bytes).step_by(24).find(is).expect("the symbol")
}

/// One way to break a rule: what the driver says, and the damage to a code object with a kernel of this name.
type Damage = (&'static str, fn(&mut Vec<u8>, &str));

const DAMAGES: &[Damage] = &[
    ("the ELF header", |f, _| f.truncate(40)),
    ("machine 62", |f, _| f[18] = 62),
    ("ABI 0", |f, _| f[7] = 0),
    ("no segment is loaded", |f, _| f[56..58].fill(0)),
    ("no segment is loaded", |f, _| {
        for _ in 0..number(f, 56, 2) {
            if let Some(at) = (0..number(f, 56, 2)).map(|i| number(f, 32, 8) + i * 56).find(|at| number(f, *at, 4) == 1)
            {
                f[at] = 0;
            }
        }
    }),
    ("passes the end of the file", |f, _| {
        let at = segment(f, 1);
        f[at + 8 + 6] = 1;
    }),
    ("0 metadata notes", |f, _| {
        let at = number(f, segment(f, 4) + 8, 8);
        f[at + 12] = b'B';
    }),
    ("0 metadata notes", |f, _| {
        let at = number(f, segment(f, 4) + 8, 8);
        f[at + 8] = 31;
    }),
    ("2 metadata notes", |f, _| {
        // A second, empty note behind the first one, in place of the last bytes of its text.
        let header = segment(f, 4);
        let (at, bytes) = (number(f, header + 8, 8), number(f, header + 32, 8));
        let shorter = (number(f, at + 4, 4) / 4 * 4 - 20) as u32;
        f[at + 4..at + 8].copy_from_slice(&shorter.to_le_bytes());
        let note = at + 20 + shorter as usize;
        f[note..note + 20].copy_from_slice(b"\x07\0\0\0\0\0\0\0\x20\0\0\0AMDGPU\0\0");
        // It takes what is left.
        let rest = (at + bytes - (note + 20)) as u32;
        f[note + 4..note + 8].copy_from_slice(&rest.to_le_bytes());
    }),
    ("sections have no names", |f, _| f[62..64].fill(0)),
    ("there is no .strtab", |f, _| {
        let at = find(f, b".strtab\0");
        f[at + 1] = b'S';
    }),
    ("there is no .symtab", |f, _| {
        let at = section(f, 2);
        f[at + 4] = 1;
    }),
    ("not in .strtab", |f, _| {
        let at = section(f, 2);
        f[at + 40] = 1;
    }),
    ("0 global symbols", |f, k| {
        let at = symbol(f, k);
        f[at + 4] &= 15;
    }),
    ("0 global symbols", |f, k| {
        let at = symbol(f, &format!("{k}.kd"));
        f[at + 4] &= 15;
    }),
    ("is no function", |f, k| {
        let at = symbol(f, k);
        f[at + 4] = 0x10;
    }),
    ("is no descriptor", |f, k| {
        let at = symbol(f, &format!("{k}.kd"));
        f[at + 4] = 0x10;
    }),
    ("is no function", |f, k| {
        let at = symbol(f, k);
        f[at + 6..at + 8].fill(0);
    }),
    ("descriptor", |f, k| {
        let at = symbol(f, &format!("{k}.kd"));
        f[at + 16] = 32;
    }),
];

#[test]
fn a_broken_rule_of_the_loader_is_named_and_refused() {
    let case =
        cases().into_iter().find(|c| c.name.starts_with("matmul bf16 x bf16 [64, 256], 1 of 1")).expect("a case");
    for target in GpuArch::ALL.into_iter().filter(|arch| arch.is_amd()).map(GpuArch::cpu) {
        let object = object(&case, target).expect("a code object");
        let kernel = object.kernels[0].name.as_str();
        let names = || object.kernels.iter().map(|k| k.name.as_str());
        assert_eq!(check(&object.code, names()), Ok(()));
        assert!(hip_double::accepts(&object.code));
        for (rule, damage) in DAMAGES {
            let mut damaged = object.code.clone();
            damage(&mut damaged, kernel);
            let said = check(&damaged, names()).expect_err(rule);
            assert!(said.contains(rule), "{said}; not: {rule}");
            assert!(!hip_double::accepts(&damaged), "{target}: the double takes an object with: {rule}");
        }
        assert!(check(&object.code, ["none"]).is_err_and(|said| said.contains("0 global symbols none")));
        for byte in 0..object.code.len().min(4096) {
            let mut damaged = object.code.clone();
            damaged[byte] ^= 0xff;
            // Whatever is said, nothing panics.
            let _ = (check(&damaged, names()), hip_double::accepts(&damaged));
        }
    }
}

#[test]
fn every_code_object_of_a_model_keeps_the_loaders_rules() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let targets: Vec<&str> = GpuArch::ALL.into_iter().filter(|arch| arch.is_amd()).map(GpuArch::cpu).collect();
    let artifact = tiny_llama::artifact(dir.path(), &targets, 64);
    assert_eq!(artifact.manifest().programs.len(), targets.len());
    for program in &artifact.manifest().programs {
        let code = artifact.section(&program.code).expect("its code");
        assert_eq!(check(code, program.kernels.iter().map(|k| k.name.as_str())), Ok(()), "{}", program.target.name);
        assert!(hip_double::accepts(code), "{}", program.target.name);
    }
}
