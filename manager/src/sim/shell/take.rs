//! Carries out what `ownership::take` says.

use super::{
    Away, Ctx, Job,
    records::{Created, create, epochs_of, look_for_life, record},
    settle::{Settled, settle},
};
use crate::{
    ownership::take::{Do, Seen, Take},
    sim::{mutation::Mutation, node::name, store::Key},
    spec::{Epoch, SnapshotId},
};

pub async fn attempt(ctx: Ctx, container: usize, newest: Epoch, own: bool) {
    if !ctx.manager(|manager, _| !manager.ending && manager.busy.insert(container)) {
        return;
    }
    ctx.note(format!("tries to take c{container} after epoch {newest}"));
    let me = name(ctx.node);
    let mut take = if own { Take::undecided(me, newest) } else { Take::new(me, newest) };
    let mut base = None;
    let mut next = Do::Look;
    loop {
        next = match next {
            Do::Look => {
                let seen = look(&ctx, container).await.ok();
                take.looked(seen, ctx.now())
            }
            Do::LookAt(at) => {
                ctx.sleep_until(at).await;
                if ctx.manager(|manager, _| manager.ending) { break } else { Do::Look }
            }
            Do::Claim(expected) => claim(&ctx, container, expected, &mut take).await,
            Do::Settle(epoch) => {
                let settled = settle(&ctx, container, epoch, false).await;
                if let Ok(Settled::Own(found)) = settled {
                    base = found;
                }
                take.settled(settled.ok().map(|settled| matches!(settled, Settled::Own(_))), ctx.now())
            }
            Do::Begin(epoch) => {
                begin(&ctx, container, epoch, base);
                break;
            }
            Do::Stop(why) => {
                ctx.note(format!("leaves c{container}: {}", reason(&why)));
                break;
            }
        };
    }
    ctx.manager(|manager, _| manager.busy.remove(&container));
}

async fn claim(ctx: &Ctx, container: usize, expected: Epoch, take: &mut Take) -> Do {
    let epoch = expected.next();
    let created = create(ctx, Key::Owner(container, epoch), record(ctx, None)).await;
    let won = created.ok().map(|created| created == Created::Won);
    if won == Some(true) {
        ctx.note(format!("claims epoch {epoch} of c{container}"));
    }
    let next = take.claimed(won);
    if next == Do::Look && ctx.with(|state| state.scenario.is(Mutation::NoLookAfterClaim)) {
        return take.looked(Some(Seen { newest: epoch, holder: None, life: None }), ctx.now());
    }
    next
}

async fn look(ctx: &Ctx, container: usize) -> Result<Seen, Away> {
    let epochs = epochs_of(ctx, container).await?;
    look_for_life(ctx).await?;
    let forgets = ctx.with(|state| state.scenario.is(Mutation::NoWaitForShort));
    let holder = epochs.holder().map(name);
    let life = ctx.manager(|manager, now| {
        let holder = holder.as_ref()?;
        let answered = manager.contact.get(holder).copied().filter(|_| !forgets);
        manager.silence.life(manager.judged, holder, answered, now)
    });
    let (newest, _) = epochs.newest().ok_or(Away)?;
    Ok(Seen { newest, holder, life })
}

fn begin(ctx: &Ctx, container: usize, epoch: Epoch, base: Option<SnapshotId>) {
    if ctx.manager(|manager, _| manager.ending) {
        return;
    }
    ctx.note(format!("owns c{container} under epoch {epoch}"));
    ctx.manager(|manager, _| manager.own.insert(container, epoch));
    ctx.spawn(Job::Begin(container, Some(base)));
}

fn reason(stop: &crate::ownership::take::Stop) -> &'static str {
    use crate::ownership::{
        silence::Life,
        take::Stop::{Away, Held, Lost},
    };
    match stop {
        Held(Life::Writes { .. }) => "its holder writes to the store",
        Held(Life::Parked) => "its holder is parked",
        Held(_) => "its holder lives",
        Lost => "another was quicker",
        Away => "the store does not answer",
    }
}
