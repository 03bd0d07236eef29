//! Processor names with features: `gfx942:sramecc+:xnack-`.

use std::fmt;

/// A processor as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arch {
    /// `gfx942`.
    pub processor: String,
    /// Features in the order given, with their setting: `("sramecc", true)`.
    pub features: Vec<(String, bool)>,
}

impl Arch {
    /// Reads `gfx942:sramecc+:xnack-`; `None` if the text is not such a name.
    pub fn parse(text: &str) -> Option<Arch> {
        let mut parts = text.split(':');
        let processor = parts.next()?;
        let digits = processor.strip_prefix("gfx")?;
        if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut features = Vec::new();
        for part in parts {
            let (name, on) = match part.strip_suffix('+') {
                Some(name) => (name, true),
                None => (part.strip_suffix('-')?, false),
            };
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return None;
            }
            features.push((name.to_owned(), on));
        }
        Some(Arch { processor: processor.to_owned(), features })
    }

    /// True if code for `target` runs here: the same processor, and every feature that the target fixes is set alike.
    pub fn runs(&self, target: &str) -> bool {
        Arch::parse(target).is_some_and(|target| {
            target.processor == self.processor && target.features.iter().all(|f| self.features.contains(f))
        })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.processor)?;
        self.features.iter().try_for_each(|(name, on)| write!(f, ":{name}{}", if *on { '+' } else { '-' }))
    }
}

/// The processor's name at `offset` of a structure, or else wherever a NUL-terminated text in it is one.
pub(crate) fn find(bytes: &[u8], offset: usize) -> Option<Arch> {
    let at = |start: usize| {
        let rest = bytes.get(start..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Arch::parse(std::str::from_utf8(&rest[..end]).ok()?)
    };
    at(offset).or_else(|| {
        let starts = bytes.windows(3).enumerate().filter(|(_, w)| *w == b"gfx").map(|(i, _)| i);
        starts.filter(|i| *i == 0 || bytes[*i - 1] == 0).find_map(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_compared() {
        let arch = Arch::parse("gfx942:sramecc+:xnack-").unwrap();
        assert_eq!(arch.processor, "gfx942");
        assert_eq!(arch.features, [("sramecc".to_owned(), true), ("xnack".to_owned(), false)]);
        assert_eq!(arch.to_string(), "gfx942:sramecc+:xnack-");
        assert!(arch.runs("gfx942") && arch.runs("gfx942:xnack-"));
        assert!(!arch.runs("gfx942:xnack+") && !arch.runs("gfx950") && !arch.runs("gfx94") && !arch.runs("sm_90a"));
        assert_eq!(Arch::parse("gfx90a").unwrap().features, []);
        for bad in ["", "gfx", "sm_90a", "gfx942:", "gfx942:xnack", "gfx942:+", "gfx94z", "gfx123456"] {
            assert_eq!(Arch::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_name_is_found_in_either_layout_and_elsewhere() {
        for (size, offset) in [(1472, 1160), (792, 396)] {
            let mut bytes = vec![0u8; size];
            bytes[..6].copy_from_slice(b"AMD XX");
            bytes[offset..offset + 22].copy_from_slice(b"gfx90a:sramecc+:xnack-");
            assert_eq!(find(&bytes, offset).unwrap().to_string(), "gfx90a:sramecc+:xnack-");
            assert_eq!(find(&bytes, 8).unwrap().processor, "gfx90a");
        }
        assert_eq!(find(&[0; 64], 8), None);
        assert_eq!(find(b"xgfx942\0", 100), None);
        assert_eq!(find(b"gfx942", 0), None);
    }
}
