-- Run once, by the superuser, when the database's volume is empty: a role for each service, each with its own password.
-- Passwords are read from the secrets' files; they stand in no command line and in no variable of the container.
\set storage_password `cat /run/secrets/storage_password`
\set mlflow_password `cat /run/secrets/mlflow_password`
\set dashboard_password `cat /run/secrets/dashboard_password`

CREATE ROLE lora_lab LOGIN PASSWORD :'storage_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE dashboard LOGIN PASSWORD :'dashboard_password';

CREATE DATABASE lora_lab OWNER lora_lab ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE mlflow OWNER mlflow ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE lora_lab, mlflow FROM PUBLIC;
GRANT CONNECT ON DATABASE lora_lab TO lora_lab, dashboard;
GRANT CONNECT ON DATABASE mlflow TO mlflow;

-- optuna-dashboard has no login of its own and offers to delete studies: its role reads, whatever its pages offer.
\connect lora_lab
GRANT USAGE ON SCHEMA public TO dashboard;
ALTER DEFAULT PRIVILEGES FOR ROLE lora_lab IN SCHEMA public GRANT SELECT ON TABLES TO dashboard;
ALTER ROLE dashboard SET default_transaction_read_only = on;
