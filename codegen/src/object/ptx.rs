//! PTX modules: which entries the text declares and what each takes.

use indexmap::IndexMap;

/// What PTX says of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryPoint {
    /// Parameters.
    pub params: u32,
    /// Threads of a block, from `.reqntid` or `.maxntid`; 0 where neither is given.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
}

/// Entries of a module by name, in order.
///
/// # Errors
/// If the text is not UTF-8, is not for `cpu`, or an entry is cut short.
pub fn read(text: &[u8], cpu: &str) -> Result<IndexMap<String, EntryPoint>, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("PTX: {e}"))?;
    let target = text.lines().find_map(|l| l.trim().strip_prefix(".target"));
    let target = target.and_then(|t| t.trim().split(',').next()).unwrap_or("?").trim();
    if target != cpu {
        return Err(format!("PTX for {target}; {cpu} is accepted"));
    }
    // Arrays outside entries belong to those that name them.
    let mut shared: Vec<(&str, u32)> = Vec::new();
    let mut entries = IndexMap::new();
    let mut current: Option<(String, EntryPoint, i64)> = None;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let declared = shared_array(line);
        if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest.split(['(', ' ']).next().unwrap_or_default();
            if name.is_empty() || current.is_some() {
                return Err("PTX: an entry inside another, or without a name".to_owned());
            }
            current = Some((name.to_owned(), EntryPoint::default(), 0));
        }
        let Some((_, entry, depth)) = &mut current else {
            shared.extend(declared);
            continue;
        };
        if *depth == 0 {
            entry.params += line.matches(".param ").count() as u32;
            let threads = line.strip_prefix(".reqntid").or_else(|| line.strip_prefix(".maxntid"));
            if let Some(dims) = threads {
                let dims = dims.split(',').map(|d| d.trim().parse::<u32>().ok());
                let product = dims.reduce(|a, b| a?.checked_mul(b?)).flatten();
                entry.threads = product.ok_or_else(|| format!("PTX: {line}"))?;
            }
        } else if let Some((_, bytes)) = declared {
            entry.shared_bytes = entry.shared_bytes.saturating_add(bytes);
        } else {
            let used = shared.iter_mut().filter(|(name, _)| mentions(line, name));
            // Each entry counts an array once; an array is used by one entry.
            for (_, bytes) in used {
                entry.shared_bytes = entry.shared_bytes.saturating_add(std::mem::take(bytes));
            }
        }
        *depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
        if *depth == 0
            && line.ends_with('}')
            && let Some((name, entry, _)) = current.take()
            && entries.insert(name.clone(), entry).is_some()
        {
            return Err(format!("PTX: entry {name} is declared twice"));
        }
    }
    match current {
        Some((name, ..)) => Err(format!("PTX: entry {name} is cut short")),
        None => Ok(entries),
    }
}

/// Name and bytes of a declared shared array: `.shared .align 16 .b8 name[1024];`.
fn shared_array(line: &str) -> Option<(&str, u32)> {
    let (_, rest) = line.split_once(".shared ")?;
    // Loads and stores say `.shared.` and so do not match; declarations end in an array.
    let (head, size) = rest.rsplit_once('[')?;
    let elements: u32 = size.split(']').next()?.parse().ok()?;
    let mut words = head.split_whitespace().rev();
    let name = words.next()?;
    let width: u32 = words.next()?.trim_start_matches(['.', 'b', 'u', 's', 'f']).parse().ok()?;
    Some((name, elements.checked_mul(width / 8)?))
}

/// True if `line` has `name` as a word.
fn mentions(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        let after = line.get(at + name.len()..).and_then(|s| s.chars().next());
        !before.is_some_and(word) && !after.is_some_and(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
.version 8.4
.target sm_90a
.address_size 64
.shared .align 16 .b8 tile[512];
.visible .entry k0_a(
\t.param .u64 .ptr .global .align 1 k0_a_param_0,
\t.param .u64 k0_a_param_1
)
.reqntid 128
{
\t.reg .b64 \t%rd<3>;
\t// demoted variable
\t.shared .align 4 .b8 other[64];
\tmov.b64 %rd1, tile;
\tld.shared.b32 %r1, [%rd1];
\t{ .reg .b16 tmp; }
\tadd.s64 %rd2, tile, 4;
\tret;
}
.visible .entry k1_b(.param .u64 k1_b_param_0) .maxntid 64, 2, 1
{
\tret;
}
";

    #[test]
    fn entries_are_read() {
        let found = read(TEXT.as_bytes(), "sm_90a").unwrap();
        assert_eq!(found["k0_a"], EntryPoint { params: 2, threads: 128, shared_bytes: 576 });
        assert_eq!((found["k1_b"].params, found["k1_b"].shared_bytes), (1, 0));
        assert!(read(TEXT.as_bytes(), "sm_80").unwrap_err().contains("sm_90a"));
        assert!(read(&TEXT.as_bytes()[..400], "sm_90a").unwrap_err().contains("cut short"));
        assert!(read(&[0xff], "sm_90a").is_err());
    }
}
