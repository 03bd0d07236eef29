//! One form chosen for every class, priced as a whole: a node that several read is paid once. What a switch changes is found by
//! counting readers, so trying one takes time by what it changes, not by the size of the graph.

use super::{Cost, Form};

/// More than any choice that has a form for all that it needs.
const NONE: u128 = 1 << 100;

/// Choices that can be changed on trial.
#[derive(Clone, Debug)]
pub(super) struct Choices<'a> {
    forms: &'a [Vec<Form>],
    roots: &'a [usize],
    choice: Vec<Option<usize>>,
    /// Readers among the needed classes; roots have one more.
    uses: Vec<u32>,
    /// Place of each needed class in the order of the last walk, operands first; `usize::MAX` for the others.
    rank: Vec<usize>,
    cost: u128,
    /// What changed since the last commit: choices and uses as they were.
    trail: Vec<Change>,
    /// Scratch of [`Choices::is_acyclic`]: the search that last opened and closed each class.
    seen: Vec<(u32, bool)>,
    searches: u32,
}

/// How the classes that were switched on trial hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// Each is an operand of the one before, and the first is needed: all of them are.
    Chain,
    /// Anyhow.
    Apart,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Choice(usize, Option<usize>),
    Uses(usize, u32),
    Cost(u128),
}

impl<'a> Choices<'a> {
    /// `None` if a root needs itself, or something without a form.
    pub fn new(forms: &'a [Vec<Form>], roots: &'a [usize], choice: Vec<Option<usize>>) -> Option<Choices<'a>> {
        let count = forms.len();
        let (uses, rank, seen) = (vec![0; count], vec![usize::MAX; count], vec![(0, false); count]);
        let mut out = Choices { forms, roots, choice, uses, rank, cost: 0, trail: Vec::new(), seen, searches: 0 };
        out.settle()?;
        Some(out)
    }

    pub fn cost(&self) -> Cost {
        Cost::try_from(self.cost).unwrap_or(Cost::MAX)
    }

    pub fn chosen(&self, class: usize) -> Option<usize> {
        self.choice[class]
    }

    /// Is the class computed for the roots?
    pub fn is_needed(&self, class: usize) -> bool {
        self.uses[class] > 0
    }

    pub fn into_choice(self) -> Vec<Option<usize>> {
        self.choice
    }

    fn form(&self, class: usize) -> Option<&'a Form> {
        Some(&self.forms[class][self.choice[class]?])
    }

    /// Switches a class to another form, on trial.
    pub fn switch(&mut self, class: usize, form: Option<usize>) {
        let old = self.form(class);
        self.trail.push(Change::Choice(class, self.choice[class]));
        self.choice[class] = form;
        if self.uses[class] == 0 {
            return;
        }
        let new = self.form(class);
        self.trail.push(Change::Cost(self.cost));
        self.cost = self.cost + price(new) - price(old);
        // What both need is not let go.
        self.count(new, true);
        self.count(old, false);
    }

    /// Counts a reader more or less for the children of a form, and for theirs where the first comes or the last goes.
    fn count(&mut self, form: Option<&'a Form>, more: bool) {
        let mut open: Vec<usize> = form.map(|f| f.children.clone()).unwrap_or_default();
        while let Some(class) = open.pop() {
            let uses = self.uses[class];
            self.trail.push(Change::Uses(class, uses));
            self.uses[class] = if more { uses + 1 } else { uses.saturating_sub(1) };
            if (more && uses == 0) || (!more && uses == 1) {
                let form = self.form(class);
                self.trail.push(Change::Cost(self.cost));
                let cost = price(form);
                self.cost = if more { self.cost + cost } else { self.cost.saturating_sub(cost) };
                open.extend(form.iter().flat_map(|f| &f.children));
            }
        }
    }

    /// A moment to go back to.
    pub fn mark(&self) -> usize {
        self.trail.len()
    }

    /// Takes back all switches since `mark`; 0 is the last commit.
    pub fn revert(&mut self, mark: usize) {
        for change in self.trail.drain(mark.min(self.trail.len())..).rev() {
            match change {
                Change::Choice(class, choice) => self.choice[class] = choice,
                Change::Uses(class, uses) => self.uses[class] = uses,
                Change::Cost(cost) => self.cost = cost,
            }
        }
    }

    /// Keeps the switches since the last commit if the roots cost less than `cost` with them; else they stay on trial.
    pub fn commit_below(&mut self, cost: Cost, joined: Joined) -> bool {
        if self.trial_cost(joined).is_none_or(|found| found >= cost) {
            return false;
        }
        let settled = self.settle().is_some();
        if settled {
            self.trail.clear();
        }
        settled
    }

    /// The cost with the switches since the last commit; `None` if a class would need itself or has no form.
    pub fn trial_cost(&mut self, joined: Joined) -> Option<Cost> {
        if self.is_acyclic() {
            return (self.cost < NONE).then(|| self.cost());
        }
        match joined {
            Joined::Chain => None,
            // Classes of the circle may have lost their readers, and are counted as each other's: only a walk tells.
            Joined::Apart => {
                let order = self.order()?;
                order.into_iter().try_fold(0, |sum: Cost, class| Some(sum.saturating_add(self.form(class)?.cost)))
            }
        }
    }

    /// Classes needed, operands first.
    pub fn order(&self) -> Option<Vec<usize>> {
        // 0 unseen, 1 open, 2 done.
        let mut state = vec![0u8; self.forms.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for root in self.roots {
            if state[*root] == 0 {
                state[*root] = 1;
                stack.push((*root, 0));
            }
            while let Some((class, next)) = stack.last_mut() {
                let form = self.form(*class)?;
                match form.children.get(*next) {
                    Some(child) => {
                        *next += 1;
                        match state[*child] {
                            0 => {
                                state[*child] = 1;
                                stack.push((*child, 0));
                            }
                            1 => return None,
                            _ => {}
                        }
                    }
                    None => {
                        state[*class] = 2;
                        order.push(*class);
                        stack.pop();
                    }
                }
            }
        }
        Some(order)
    }

    /// Counts everything anew, as classes may stand in another order now.
    fn settle(&mut self) -> Option<()> {
        let order = self.order()?;
        self.uses.fill(0);
        self.rank.fill(usize::MAX);
        self.cost = 0;
        for (place, class) in order.into_iter().enumerate() {
            self.rank[class] = place;
            let form = self.form(class)?;
            self.cost += u128::from(form.cost);
            form.children.iter().for_each(|child| self.uses[*child] += 1);
        }
        self.roots.iter().for_each(|root| self.uses[*root] += 1);
        Some(())
    }

    /// No needed class needs itself. At the last commit none did, and every class came after its operands: a circle now goes
    /// through a class that was switched, and through none that came before all of those.
    fn is_acyclic(&mut self) -> bool {
        let switched = self.trail.iter().filter_map(|change| match change {
            Change::Choice(class, _) => Some(*class),
            _ => None,
        });
        let starts: Vec<usize> = switched.filter(|c| self.uses[*c] > 0).collect();
        let lowest = starts.iter().map(|c| self.rank[*c]).min().unwrap_or(usize::MAX);
        self.searches += 1;
        let search = self.searches;
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for start in starts {
            if self.seen[start].0 != search {
                self.seen[start] = (search, false);
                stack.push((start, 0));
            }
            while let Some((class, next)) = stack.last_mut() {
                let child = self.form(*class).and_then(|f| f.children.get(*next)).copied();
                *next += 1;
                match child {
                    Some(child) if self.rank[child] < lowest => {}
                    Some(child) if self.seen[child].0 != search => {
                        self.seen[child] = (search, false);
                        stack.push((child, 0));
                    }
                    Some(child) if !self.seen[child].1 => return false,
                    Some(_) => {}
                    None => {
                        self.seen[*class].1 = true;
                        stack.pop();
                    }
                }
            }
        }
        true
    }
}

fn price(form: Option<&Form>) -> u128 {
    form.map_or(NONE, |f| u128::from(f.cost))
}
