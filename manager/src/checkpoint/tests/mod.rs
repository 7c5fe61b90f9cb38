mod failures;
mod lab;
mod life;
mod obstacles;
