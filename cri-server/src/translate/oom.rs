//! How the node's kernel rates the monitor of a microVM when memory is short: as the kubelet rates the containers, whose memory is the
//! monitor's.

/// A process of a BestEffort pod.
const BEST_EFFORT: i16 = 1000;
/// What the kubelet gives a container of a Burstable pod, at least and at most.
const BURSTABLE: (i64, i64) = (3, 999);
/// A process of a Guaranteed pod.
const GUARANTEED: i16 = -997;
/// No monitor is exempt from the kernel's choice, which -1000 would mean.
const LEAST: i64 = -999;

/// The score until the pod has a container, by the names that the kubelet gives to the cgroups of its classes; as any process where it
/// gave none.
pub(crate) fn by_class(cgroup_parent: &str) -> i16 {
    let has = |wanted: &str| cgroup_parent.split(['/', '-', '.']).any(|word| word == wanted);
    match () {
        () if has("besteffort") => BEST_EFFORT,
        () if has("burstable") => BURSTABLE.1 as i16,
        () if has("kubepods") => GUARANTEED,
        () => 0,
    }
}

/// The score of a monitor with containers of such scores, of which there is at least one.
///
/// A Burstable container's score is 1000 less the thousandths of the node's memory that it requests. The monitor's memory is that of all
/// of them, so their requests add up.
pub(crate) fn of_containers(scores: impl IntoIterator<Item = i64>) -> Option<i16> {
    let scores: Vec<i64> = scores.into_iter().map(|score| score.clamp(-1000, 1000)).collect();
    let lowest = *scores.iter().min()?;
    let requested: i64 = scores.iter().map(|score| 1000 - score).sum();
    let score = (1000 - requested).max(lowest.min(BURSTABLE.0)).max(LEAST);
    i16::try_from(score).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_known_by_the_kubelet_s_names() {
        for (parent, score) in [
            ("/kubepods/besteffort/pod1", 1000),
            ("/kubepods/burstable/pod1", 999),
            ("/kubepods/pod1", -997),
            ("/kubelet/kubepods/pod1", -997),
            ("kubepods-besteffort-pod1.slice", 1000),
            ("kubepods-burstable-pod1.slice", 999),
            ("kubepods-pod1.slice", -997),
            ("kubelet-kubepods-pod1.slice", -997),
            ("/cofferdam", 0),
            ("cofferdam.slice", 0),
            ("/", 0),
        ] {
            assert_eq!(by_class(parent), score, "{parent}");
        }
    }

    #[test]
    fn a_monitor_is_rated_as_its_containers_together() {
        for (containers, score) in [
            (&[][..], None),
            (&[0], Some(0)),
            (&[0, 0], Some(0)),
            (&[1000, 1000], Some(1000)),
            (&[-997, -997, -997], Some(-997)),
            (&[-997, 1000], Some(-997)),
            (&[-1000], Some(-999)),
            (&[900], Some(900)),
            (&[900, 850], Some(750)),
            (&[500, 300, 3], Some(3)),
            (&[i64::MAX, i64::MIN], Some(-999)),
        ] {
            assert_eq!(of_containers(containers.iter().copied()), score, "{containers:?}");
        }
    }
}
