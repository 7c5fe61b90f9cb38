//! Runs the shell's tasks: each is a future that waits for the world's clock or its store, polled in an order that follows from
//! the seed alone.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    Micros,
    node::Manager,
    scenario::micros,
    shell::{self, Job},
    store::{Answer, Op},
    world::{Due, State},
};

/// A task of one manager.
pub struct Task {
    pub node: usize,
    /// `None` while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// The store gave no answer: what was asked may have happened, or may yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// The world, shared by its tasks.
#[derive(Clone)]
pub struct World(Rc<RefCell<State>>);

/// Where a task runs.
#[derive(Clone)]
pub struct Ctx {
    world: World,
    pub node: usize,
}

impl World {
    pub fn new(state: State) -> Self {
        Self(Rc::new(RefCell::new(state)))
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.borrow_mut())
    }

    /// Lets one thing happen. False when nothing is due by `end`.
    pub fn step(&self, end: Micros) -> bool {
        let Some(due) = self.with(|state| state.next(end)) else { return false };
        match due {
            Due::Wake(task) if !self.is_stopped(task) => self.poll(task),
            due => self.with(|state| state.happen(due)),
        }
        self.spawn_jobs();
        true
    }

    /// The tasks hold the world, which holds them: taken apart at the end.
    pub fn end(self) -> Option<State> {
        let tasks = self.with(|state| std::mem::take(&mut state.tasks));
        drop(tasks);
        Rc::into_inner(self.0).map(RefCell::into_inner)
    }

    fn is_stopped(&self, task: u64) -> bool {
        self.with(|state| state.tasks.get(&task).is_some_and(|task| state.nodes[task.node].stopped))
    }

    fn spawn_jobs(&self) {
        loop {
            let jobs = self.with(|state| std::mem::take(&mut state.jobs));
            if jobs.is_empty() {
                return;
            }
            for (node, job) in jobs {
                self.spawn(node, job);
            }
        }
    }

    fn spawn(&self, node: usize, job: Job) {
        if self.with(|state| state.nodes[node].manager.is_none()) {
            return;
        }
        let ctx = Ctx { world: self.clone(), node };
        let id = self.with(|state| state.unique());
        let task = Task { node, future: Some(shell::task(job, ctx)) };
        self.with(|state| state.tasks.insert(id, task));
        self.poll(id);
    }

    fn poll(&self, id: u64) {
        let future = self.with(|state| {
            state.current = id;
            state.tasks.get_mut(&id).and_then(|task| task.future.take())
        });
        let Some(mut future) = future else { return };
        let ended = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        // Dropped outside of the borrow: it may hold the last of something.
        let over = self.with(|state| match state.tasks.get_mut(&id) {
            Some(task) if !ended => {
                task.future = Some(future);
                None
            }
            _ => {
                state.tasks.remove(&id);
                Some(future)
            }
        });
        drop(over);
    }
}

impl Ctx {
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        self.world.with(f)
    }

    pub fn manager<T>(&self, f: impl FnOnce(&mut Manager, Instant) -> T) -> T {
        self.with(|state| {
            let now = state.instant(self.node);
            f(state.manager(self.node), now)
        })
    }

    pub fn now(&self) -> Instant {
        self.with(|state| state.instant(self.node))
    }

    pub fn spawn(&self, job: Job) {
        self.with(|state| state.jobs.push((self.node, job)));
    }

    pub fn note(&self, what: impl Into<String>) {
        self.with(|state| state.note(self.node, what));
    }

    /// By the node's clock.
    pub fn sleep(&self, time: Duration) -> Sleep {
        let until = self.with(|state| state.nodes[self.node].clock.read(state.now)) + micros(time);
        Sleep { ctx: self.clone(), until, armed: None }
    }

    pub fn sleep_until(&self, until: Instant) -> Sleep {
        let until = self.with(|state| state.shown(until));
        Sleep { ctx: self.clone(), until, armed: None }
    }

    pub async fn call(&self, op: Op) -> Result<Answer, Away> {
        let id = self.with(|state| state.call(self.node, op));
        Reply { ctx: self.clone(), id }.await.ok_or(Away)
    }
}

pub struct Sleep {
    ctx: Ctx,
    until: Micros,
    armed: Option<Micros>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let (until, armed, node) = (self.until, self.armed, self.ctx.node);
        let at = self.ctx.with(|state| {
            let clock = state.nodes[node].clock;
            if clock.read(state.now) >= until {
                return None;
            }
            let at = clock.when(until);
            if armed.is_none_or(|armed| armed <= state.now) {
                let task = state.current;
                state.push(at, Due::Wake(task));
                return Some(at);
            }
            armed
        });
        self.armed = at;
        if at.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }
}

struct Reply {
    ctx: Ctx,
    id: u64,
}

impl Future for Reply {
    type Output = Option<Answer>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Answer>> {
        match self.ctx.with(|state| state.replies.remove(&self.id)) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}
