/** Mounts the page into its HTML document. */

import { mount } from 'svelte';
import App from './App.svelte';
import './page.css';

const target = document.getElementById('app')!;
target.replaceChildren();
mount(App, { target });
