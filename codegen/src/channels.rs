//! The layout of the symmetric slab: every channel once, in the order in which launches first use them.

use crate::channel::Channel;
use indexmap::IndexMap;
use weldment_artifact::{Arg, Region, Slab};

/// AMD exports whole pages, and each channel starts at one.
const PAGE: u64 = 4096;

/// Channels, with the byte of the slab that each starts at.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    places: IndexMap<Channel, u64>,
    bytes: u64,
}

impl Channels {
    /// Where the channel lies; a new one goes to the end.
    pub(crate) fn place(&mut self, channel: Channel) -> Arg {
        let end = &mut self.bytes;
        let offset = *self.places.entry(channel).or_insert_with(|| {
            let start = *end;
            *end = (start + channel.bytes()).next_multiple_of(PAGE);
            start
        });
        Arg { region: Region::Slab, offset }
    }

    /// The slab of all channels; none without channels.
    pub(crate) fn slab(&self) -> Option<Slab> {
        let fills = self.places.iter().map(|(channel, start)| channel.fill(*start)).collect();
        (!self.places.is_empty()).then_some(Slab { bytes: self.bytes, fills })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_lie_apart_and_equal_ones_together() {
        let mut channels = Channels::default();
        assert_eq!(channels.slab(), None);
        let [a, b] = [256, 1000].map(|bytes| Channel::new(2, 3, bytes, 0x8000_0000));
        let places = [a, b, a].map(|c| channels.place(c).offset);
        assert_eq!(places[0], places[2]);
        assert!(places[1] >= places[0] + a.bytes() && places[1].is_multiple_of(PAGE));
        let slab = channels.slab().unwrap();
        assert!(slab.bytes.is_multiple_of(PAGE) && slab.bytes >= places[1] + b.bytes());
        let fill = slab.fills[1];
        assert_eq!(fill.bytes, 3 * 4 * 2 * 1024);
        assert!(fill.offset + fill.bytes <= slab.bytes && fill.offset >= places[1] + 12);
    }
}
