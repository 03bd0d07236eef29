//! What a program's kernels are built for: the machine, the choices that the user fixed, and the symbols of the model.

use crate::choices::{Choices, Places};
use crate::target::Target;
use weldment_artifact::SymbolRole;
use weldment_ir::{Graph, Node};

/// The symbols of an entry, in the order of the dims block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Symbols {
    names: Vec<String>,
    rows: Option<String>,
    logit_rows: Option<String>,
}

impl Symbols {
    /// Those of a graph.
    pub fn of(graph: &Graph) -> Symbols {
        let name = |(name, _): (&std::sync::Arc<str>, _)| name.to_string();
        Symbols {
            names: graph.symbols().keys().map(ToString::to_string).collect(),
            rows: graph.row_symbol().map(name),
            // Without tokens nothing says how many rows there are at most.
            logit_rows: graph
                .symbol_of(&SymbolRole::LogitRows)
                .filter(|_| graph.symbol_of(&SymbolRole::Tokens).is_some())
                .map(name),
        }
    }

    /// The same in a dims block of the symbols of `graphs`, in the order in which they come first.
    pub fn among(self, graphs: &[Graph]) -> Symbols {
        let mut names: Vec<String> = Vec::new();
        for name in graphs.iter().flat_map(|graph| graph.symbols().keys()) {
            if !names.iter().any(|known| **known == **name) {
                names.push(name.to_string());
            }
        }
        Symbols { names, ..self }
    }

    /// Symbols without roles.
    pub fn plain(names: &[&str]) -> Symbols {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Symbols { rows: names.first().cloned(), names, logit_rows: None }
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The place of a symbol in the dims block.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|symbol| symbol == name)
    }

    /// The symbol that a variant's `max_tokens` bounds ([`Graph::row_symbol`]).
    pub fn rows(&self) -> Option<&str> {
        self.rows.as_deref()
    }

    /// Is `max_tokens` of a variant the most that this symbol is?
    pub fn is_rows(&self, symbol: Option<&str>) -> bool {
        symbol.is_some() && symbol == self.rows()
    }

    /// Is this symbol at most `max_tokens`?
    pub fn is_bounded(&self, symbol: Option<&str>) -> bool {
        self.is_rows(symbol) || (symbol.is_some() && symbol == self.logit_rows.as_deref())
    }
}

/// A machine, the user's choices, and symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// The machine.
    pub target: Target,
    /// Automatic choices that the user fixed.
    pub choices: Choices,
    /// Those that the user fixed for some ops alone.
    pub places: Places,
    /// Symbols of the model.
    pub symbols: Symbols,
}

impl Setup {
    /// `target` for graphs with the symbols of `graph`, nothing fixed.
    pub fn of(target: Target, graph: &Graph) -> Setup {
        Setup { target, choices: Choices::default(), places: Places::default(), symbols: Symbols::of(graph) }
    }

    /// The choices for a node.
    pub fn choices_at(&self, node: &Node) -> Choices {
        self.places.at(self.choices, node)
    }
}
