//! Hand-written serde for the two types that occur by the thousand: short JSON, no buffering while parsing.

use crate::manifest::{Arg, GridDim, Region};
use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

impl Serialize for GridDim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            GridDim::Const(n) => serializer.serialize_u64(*n),
            GridDim::Symbol { symbol, mul, div } => (symbol, mul, div).serialize(serializer),
        }
    }
}

struct GridDimVisitor;

impl<'de> Visitor<'de> for GridDimVisitor {
    type Value = GridDim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count or [symbol, mul, div]")
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<GridDim, E> {
        Ok(GridDim::Const(n))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<GridDim, A::Error> {
        let missing = |i| A::Error::invalid_length(i, &"[symbol, mul, div]");
        let symbol = seq.next_element()?.ok_or_else(|| missing(0))?;
        let mul = seq.next_element()?.ok_or_else(|| missing(1))?;
        let div = seq.next_element()?.ok_or_else(|| missing(2))?;
        Ok(GridDim::Symbol { symbol, mul, div })
    }
}

impl<'de> Deserialize<'de> for GridDim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GridDimVisitor)
    }
}

impl Serialize for Arg {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.region.code(), self.offset).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Arg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (code, offset) = <(u64, u64)>::deserialize(deserializer)?;
        let region = Region::from_code(code)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Unsigned(code), &"a region code"))?;
        Ok(Arg { region, offset })
    }
}
