-- PostgreSQL makes the database `operations` when it starts for the first time; this one is MLflow's.
CREATE DATABASE mlflow;
