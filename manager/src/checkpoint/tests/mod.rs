mod failures;
mod figures;
mod lab;
mod life;
mod obstacles;
