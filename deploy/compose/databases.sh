#!/bin/sh
# Run by Postgres' image once, when its volume is empty: a database and a role each for MLflow, Optuna and the state.
# Elsewhere by hand, with PGHOST and PGPASSWORD: on a managed server, whose first user is no superuser, too.
set -eu

# A role and its database, with the password that a variable has: database NAME VARIABLE
database() {
  psql --set ON_ERROR_STOP=1 --set name="$1" --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\getenv password $2
CREATE ROLE :"name" LOGIN PASSWORD :'password';
GRANT :"name" TO CURRENT_USER;
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

database mlflow MLFLOW_PASSWORD
database optuna OPTUNA_PASSWORD
database raymlops STATE_PASSWORD
