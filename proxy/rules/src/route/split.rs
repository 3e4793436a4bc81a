//! Weighted choice. The random number is passed in.

/// Choices with the running sum of their weights.
#[derive(Debug, Clone)]
pub struct Split<T> {
    choices: Vec<(u32, T)>,
    total: u32,
}

impl<T> Split<T> {
    /// A split of choices by weight. A choice of weight 0 is never taken, unless it is the only one: a lone
    /// destination's weight doesn't matter, as in Istio.
    pub fn new(choices: impl IntoIterator<Item = (T, u32)>) -> Split<T> {
        let mut total = 0_u32;
        let mut sums = Vec::new();
        for (choice, weight) in choices {
            total = total.saturating_add(weight);
            sums.push((total, choice));
        }
        Split {
            choices: sums,
            total,
        }
    }

    /// The choice at `dice`, a random number evenly spread over all of `u32`.
    pub fn pick(&self, dice: u32) -> Option<&T> {
        if let [(_, only)] = self.choices.as_slice() {
            return Some(only);
        }
        let scaled = (u64::from(dice) * u64::from(self.total)) >> 32;
        let at = self
            .choices
            .partition_point(|(sum, _)| u64::from(*sum) <= scaled);
        self.choices.get(at).map(|(_, choice)| choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_over_all_dice() {
        let split = Split::new([("v1", 90), ("none", 0), ("v2", 10)]);
        let mut counts = std::collections::HashMap::new();
        for i in 0..1000_u32 {
            let dice = u32::try_from((u64::from(i) << 32).div_ceil(1000)).expect("fits");
            *counts.entry(*split.pick(dice).expect("one")).or_insert(0) += 1;
        }
        assert_eq!(counts.get("v1"), Some(&900));
        assert_eq!(counts.get("v2"), Some(&100));
        assert_eq!(counts.get("none"), None);
        assert_eq!(split.pick(u32::MAX), Some(&"v2"));
    }

    #[test]
    fn a_lone_choice_is_taken_whatever_its_weight() {
        assert_eq!(Split::new([("only", 0)]).pick(7), Some(&"only"));
        assert_eq!(Split::<()>::new([]).pick(7), None);
        assert_eq!(Split::new([("a", 0), ("b", 0)]).pick(7), None);
    }
}
