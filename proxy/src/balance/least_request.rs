//! Least request over endpoints of equal weight; pure.

/// Up to this many endpoints all are compared; beyond, two draws do nearly as well at a fixed cost.
const EXACT: usize = 16;

/// The endpoint with the fewest requests in flight: exact over few, the better of two draws over many. Ties are broken
/// evenly.
pub(super) fn pick(
    count: usize,
    in_flight: impl Fn(usize) -> u32,
    mut dice: impl FnMut() -> u32,
) -> usize {
    let start = scaled(dice(), count);
    if count <= EXACT {
        let turned = (0..count).map(|i| (start + i) % count);
        return turned.min_by_key(|&i| in_flight(i)).unwrap_or(0);
    }
    let other = (start + 1 + scaled(dice(), count - 1)) % count;
    match in_flight(other) < in_flight(start) {
        true => other,
        false => start,
    }
}

/// `dice`, uniform over `u32`, as a number below `count`.
pub(super) fn scaled(dice: u32, count: usize) -> usize {
    let scaled = (u64::from(dice) * count as u64) >> 32;
    usize::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_few_the_least_loaded_is_always_found() {
        let load = [3, 1, 2, 9];
        for dice in (0..32).map(|bit| 1_u32 << bit) {
            assert_eq!(pick(4, |i| load[i], || dice), 1);
        }
    }

    #[test]
    fn over_many_the_two_draws_differ() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..1000 {
            let seen = std::cell::RefCell::new(Vec::new());
            let look = |i: usize| {
                seen.borrow_mut().push(i);
                0
            };
            pick(100, look, || rng.u32(..));
            let seen = seen.into_inner();
            assert!(seen.len() == 2 && seen[0] != seen[1], "{seen:?}");
        }
    }
}
